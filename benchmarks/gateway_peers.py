"""The peers that need no installation of their own, each serving the same model on a given port.

    python benchmarks/gateway_peers.py fastapi|ray-serve|ray-serve-usual --port PORT --model WEIGHTS.pt

Prints "ready" when it answers and serves until it is ended.
"""

# No postponed annotations: FastAPI reads those of classes that Ray ships by value.
import argparse
import sys
import time
from typing import Any

from fastapi import FastAPI, Request, Response

PATH = "/v2/models/mlp/infer"


class Mlp:
    """The same weights as a plain module in process, the fastest way that PyTorch has."""

    def __init__(self, path: str) -> None:
        import torch

        torch.set_num_threads(1)
        self.torch = torch
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)
        ).eval()
        self.layers.load_state_dict(torch.load(path, weights_only=True))

    def answer(self, document: dict[str, Any]) -> dict[str, Any]:
        import numpy as np

        tensor = document["inputs"][0]
        x = np.array(tensor["data"], dtype=np.float32).reshape(tensor["shape"])
        self.torch.set_num_threads(1)  # a setting of each thread
        with self.torch.inference_mode():
            y = self.layers(self.torch.from_numpy(x)).numpy()
        return {
            "model_name": "mlp",
            "outputs": [
                {"name": "logits", "datatype": "FP32", "shape": list(y.shape),
                 "data": y.reshape(-1).tolist()},
            ],
        }  # fmt: skip


def fastapi_app(model: Any) -> Any:
    """FastAPI with the fast JSON library: the ceiling of one Python process."""
    import orjson

    app = FastAPI()

    @app.post(PATH)
    async def infer(request: Request) -> Response:
        document = orjson.loads(await request.body())
        return Response(orjson.dumps(model.answer(document)), media_type="application/json")

    return app


def serve_fastapi(port: int, path: str) -> None:
    import uvicorn

    app = fastapi_app(Mlp(path))
    print("ready", flush=True)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def serve_ray(port: int, path: str, usual: bool) -> None:
    import ray
    from ray import serve

    ray.init(address="auto", log_to_driver=False, logging_level="error")
    serve.start(http_options={"host": "127.0.0.1", "port": port}, proxy_location="HeadOnly")

    @serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=256)
    class Bare:
        def __init__(self, path: str) -> None:
            self.model = Mlp(path)

        async def __call__(self, request: Request) -> Any:
            return self.model.answer(await request.json())

        async def infer(self, document: dict[str, Any]) -> dict[str, Any]:
            return self.model.answer(document)

    app = FastAPI()

    @serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=256)
    @serve.ingress(app)
    class Front:
        def __init__(self, model: Any) -> None:
            self.model = model

        @app.post(PATH)
        async def infer(self, request: Request) -> Any:
            return await self.model.infer.remote(await request.json())

    if usual:
        serve.run(Front.bind(Bare.bind(path)), name="usual", route_prefix="/")
    else:
        serve.run(Bare.bind(path), name="bare", route_prefix=PATH)
    print("ready", flush=True)
    while True:
        time.sleep(3600)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=["fastapi", "ray-serve", "ray-serve-usual"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True, help="its weights, a state dict")
    args = parser.parse_args()
    if args.peer == "fastapi":
        serve_fastapi(args.port, args.model)
    else:
        serve_ray(args.port, args.model, usual=args.peer == "ray-serve-usual")


if __name__ == "__main__":
    sys.exit(main())
