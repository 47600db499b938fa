"""A script for Hugging Face's Trainer that knows nothing of Sundog: a small GPT, from random weights.

    ray job submit --working-dir . -- python jobs/guard.py -- \
        python jobs/examples/hf_trainer.py --output_dir /shared/out

All that it does for a new start is what such scripts do anyway: it looks for its last checkpoint.
"""

import argparse
from pathlib import Path

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import get_last_checkpoint

TEXT = (
    b"It is a truth universally acknowledged, that a node in want of a price must be taken away. "
)


class Bytes(torch.utils.data.Dataset):
    """The text over and over, cut into windows."""

    def __init__(self, windows: int, length: int):
        text = torch.tensor(list(TEXT * (windows * length // len(TEXT) + 1)))
        self.windows = text[: windows * length].reshape(windows, length)

    def __len__(self):
        return len(self.windows)

    def __getitem__(self, index):
        return {"input_ids": self.windows[index]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--max_steps", type=int, default=400)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=256, n_positions=32, n_embd=32, n_layer=1, n_head=2)
    trainer = Trainer(
        model=GPT2LMHeadModel(config),
        args=TrainingArguments(
            output_dir=arguments.output_dir, max_steps=arguments.max_steps, save_steps=20,
            save_total_limit=2, logging_steps=20, per_device_train_batch_size=8,
            learning_rate=3e-3, report_to="none", disable_tqdm=True,
        ),
        train_dataset=Bytes(256, 32),
        data_collator=lambda rows: {
            "input_ids": torch.stack([r["input_ids"] for r in rows]),
            "labels": torch.stack([r["input_ids"] for r in rows]),
        },
    )  # fmt: skip
    last = (
        get_last_checkpoint(arguments.output_dir) if Path(arguments.output_dir).is_dir() else None
    )
    print("begins with", Path(last).name if last else "nothing", flush=True)
    trainer.train(resume_from_checkpoint=last)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(
        f"done at {trainer.state.global_step}, loss {losses[0]:.2f} to {losses[-1]:.2f}", flush=True
    )


if __name__ == "__main__":
    main()
