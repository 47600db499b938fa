"""A training function of your own under Ray Train, with three of Sundog's parts and nothing else of it.

    ray job submit --working-dir . -- python jobs/examples/own_loop.py --name mine --workers 2

Run it again with another number of workers: it goes on from its last checkpoint, and over both runs
every sample comes as often as it would have in one.
"""

from __future__ import annotations

import argparse
import hashlib
import json

import numpy as np
import ray.train
import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model
from sklearn.datasets import load_digits

from sundog import ElasticSampler, GoodputMeter, JustInTimeCheckpoint, NodeNotice


def train(config: dict) -> None:
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(0)
    raw = load_digits()
    x, y = torch.tensor(raw.data, dtype=torch.float32) / 16, torch.tensor(raw.target)

    meter = GoodputMeter(nodes=world)
    sampler = ElasticSampler(len(x), batch=128, seed=1, rank=rank, world=world)
    net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    saver = JustInTimeCheckpoint(
        config["name"], root=config["root"], every=config["every"], workers=world,
        notice=NodeNotice().start() if rank == 0 else None,
    )  # fmt: skip
    with meter.waiting("startup"):
        state = saver.latest()  # every rank reads the same one
        if state:
            net.load_state_dict(state["net"])
            optimizer.load_state_dict(state["optimizer"])
            sampler.load_state_dict(state["sampler"])
        model = prepare_model(net)

    began = sampler.step
    for rows in sampler.until(config["steps"]):
        loss = torch.nn.functional.cross_entropy(model(x[rows]), y[rows]) * sampler.weight
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sampler.step += 1
        meter.stepped(sampler.step, saver.stall_s)
        if rank == 0:
            saver.step(
                sampler.step,
                lambda: {
                    "net": net.state_dict(), "optimizer": optimizer.state_dict(),
                    "sampler": sampler.state_dict(),
                },
                last=sampler.step == config["steps"],
            )  # fmt: skip
    if rank == 0:
        with torch.no_grad():
            accuracy = (net(x).argmax(1) == y).float().mean().item()
        weights = np.concatenate([p.detach().numpy().ravel() for p in net.parameters()])
        print("RESULT " + json.dumps({
            "began": began, "step": sampler.step, "world": world, "accuracy": accuracy,
            "epoch": sampler.epoch, "goodput": meter.goodput, "seconds": meter.seconds,
            "sha256": hashlib.sha256(weights.tobytes()).hexdigest(), "norm": float(
                np.linalg.norm(weights)),
        }), flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="own-loop", help="a run of the same name goes on")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", default="auto", help="auto, 30s, or a number of steps")
    parser.add_argument("--root", help="storage root; else the cluster's")
    arguments = parser.parse_args()
    every = int(arguments.every) if arguments.every.isdigit() else arguments.every
    config = {**vars(arguments), "every": every}
    TorchTrainer(
        train, train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=arguments.workers),
    ).fit()  # fmt: skip


if __name__ == "__main__":
    main()
