"""Peers with an environment of their own, each serving the same weights on a given port.

    build/peers/python/bin/python benchmarks/gateway_foreign.py mosec --port PORT --model mlp.npz

`make bench-peers` installs them. They need no torch: the model is two products in numpy, which is
the faster of the two for it, so what differs from the other rows is in their favour. Each answers a
request of the Open Inference Protocol with its answer, at the path that `gateway.py` knows.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

MODEL = "SUNDOG_BENCH_MODEL"
BATCH = 16


class Mlp:
    def __init__(self, path: str) -> None:
        weights = np.load(path)
        self.a, self.b, self.c, self.d = (weights[k] for k in ("w1", "b1", "w2", "b2"))

    def rows(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x @ self.a.T + self.b, 0) @ self.c.T + self.d

    def answer(self, document: dict) -> dict:
        return self.answers([document])[0]

    def answers(self, documents: list) -> list:
        tensors = [d["inputs"][0] for d in documents]
        parts = [np.array(t["data"], np.float32).reshape(t["shape"]) for t in tensors]
        y, at, out = self.rows(np.concatenate(parts)), 0, []
        for part in parts:
            rows = y[at : at + len(part)]
            at += len(part)
            tensor = {"name": "logits", "datatype": "FP32", "shape": list(rows.shape)}
            out.append({"outputs": [{**tensor, "data": rows.reshape(-1).tolist()}]})
        return out


def script(source: str, *words: str) -> None:
    """Run a program whose classes processes of its own can import."""
    head = f"import os, sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "peer.py")
        path.write_text(head + "from gateway_foreign import MODEL, Mlp\n" + source)
        run([sys.executable, str(path), *words], folder)


def mosec(port: int, batched: bool) -> None:
    how = f"max_batch_size={BATCH}, max_wait_time=2" if batched else "num=1"
    script(
        "from mosec import Server, Worker\n"
        "class Ours(Worker):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n        self.model = Mlp(os.environ[MODEL])\n"
        "    def forward(self, data):\n"
        f"        return self.model.{'answers' if batched else 'answer'}(data)\n"
        "if __name__ == '__main__':\n"
        f"    server = Server()\n    server.append_worker(Ours, {how})\n    server.run()\n",
        "--address", "127.0.0.1", "--port", str(port), "--log-level", "error",
    )  # fmt: skip


def litserve(port: int) -> None:
    script(
        "import litserve as ls\n"
        "class Ours(ls.LitAPI):\n"
        "    def setup(self, device):\n        self.model = Mlp(os.environ[MODEL])\n"
        "    def decode_request(self, request):\n        return request\n"
        "    def predict(self, x):\n        return self.model.answer(x)\n"
        "    def encode_response(self, output):\n        return output\n"
        "if __name__ == '__main__':\n"
        "    server = ls.LitServer(Ours(), accelerator='cpu', workers_per_device=1)\n"
        f"    server.run(host='127.0.0.1', port={port}, generate_client_file=False, "
        "log_level='error')\n"
    )


def bentoml(port: int) -> None:
    source = (
        "import os, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import bentoml\nfrom gateway_foreign import MODEL, Mlp\n"
        "@bentoml.service(workers=1, metrics={'enabled': False}, logging={'access': {'enabled': False}})\n"
        "class Bento:\n"
        "    def __init__(self):\n        self.model = Mlp(os.environ[MODEL])\n"
        "    @bentoml.api(route='/infer')\n"
        "    def infer(self, inputs: list) -> dict:\n"
        "        return self.model.answer({'inputs': inputs})\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "bento.py").write_text(source)
        run([sys.executable, "-m", "bentoml", "serve", "bento:Bento", "--host", "127.0.0.1",
             "--port", str(port)], folder)  # fmt: skip


def mlserver(port: int) -> None:
    """In process: its workers of 1.7.1 do not start beside today's uvloop."""
    source = (
        "import os, sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from gateway_foreign import MODEL, Mlp\n"
        "from mlserver import MLModel\nfrom mlserver.codecs import NumpyCodec\n"
        "from mlserver.types import InferenceResponse\n"
        "class Ours(MLModel):\n"
        "    async def load(self):\n        self.model = Mlp(os.environ[MODEL]); return True\n"
        "    async def predict(self, payload):\n"
        "        x = NumpyCodec.decode_input(payload.inputs[0])\n"
        "        out = NumpyCodec.encode_output('logits', self.model.rows(x))\n"
        "        return InferenceResponse(model_name=self.name, outputs=[out])\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "ours.py").write_text(source)
        Path(folder, "model-settings.json").write_text(
            '{"name": "mlp", "implementation": "ours.Ours"}'
        )
        Path(folder, "settings.json").write_text(
            f'{{"host": "127.0.0.1", "http_port": {port}, "grpc_port": {port + 1}, '
            f'"metrics_port": {port + 2}, "parallel_workers": 0, "debug": false}}'
        )
        run([sys.executable, "-m", "mlserver.cli.main", "start", folder], folder)


def triton(port: int) -> None:
    """Triton's own server from nvidia-pytriton, its Python backend, batches of up to 16."""
    import pytriton

    home = Path(pytriton.__file__).parent / "tritonserver"
    source = (
        "import os, sys\n"
        f"sys.path[:0] = {[str(Path(__file__).parent), str(home.parents[1])]!r}\n"
        "import numpy as np\nimport triton_python_backend_utils as pb\n"
        "from gateway_foreign import MODEL, Mlp\n"
        "class TritonPythonModel:\n"
        "    def initialize(self, args):\n        self.model = Mlp(os.environ[MODEL])\n"
        "    def execute(self, requests):\n"
        "        xs = [pb.get_input_tensor_by_name(r, 'pixels').as_numpy() for r in requests]\n"
        "        y, at, out = self.model.rows(np.concatenate(xs)), 0, []\n"
        "        for x in xs:\n"
        "            part = y[at:at + len(x)]; at += len(x)\n"
        "            out.append(pb.InferenceResponse([pb.Tensor('logits', part)]))\n"
        "        return out\n"
    )
    config = (
        f'name: "mlp"\nbackend: "python"\nmax_batch_size: {BATCH}\n'
        'input [{name: "pixels" data_type: TYPE_FP32 dims: [64]}]\n'
        'output [{name: "logits" data_type: TYPE_FP32 dims: [10]}]\n'
        "instance_group [{kind: KIND_CPU count: 1}]\ndynamic_batching {}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder, "models")
        version = repository / "mlp" / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text(source)
        (version.parent / "config.pbtxt").write_text(config)
        # The package keeps the stub for each Python apart from the backend.
        backend = Path(folder, "backends", "python")
        shutil.copytree(home / "backends" / "python", backend)
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        for stub in (home / "python_backend_stubs" / python).iterdir():
            shutil.copy(stub, backend)
        libraries = [home.parents[1] / "nvidia_pytriton.libs"]
        os.environ["LD_LIBRARY_PATH"] = ":".join(
            [*map(str, libraries), os.environ.get("LD_LIBRARY_PATH", "")]
        )
        run([str(home / "bin" / "tritonserver"), f"--model-repository={repository}",
             f"--backend-directory={Path(folder, 'backends')}", f"--http-port={port}",
             "--http-address=127.0.0.1", "--allow-grpc=false", "--allow-metrics=false"],
            folder)  # fmt: skip


def run(command: list, folder: str) -> None:
    """Until it ends or this process is told to."""
    import signal

    process = subprocess.Popen(command, cwd=folder)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    process.wait()


PEERS = {
    "mosec": lambda port: mosec(port, False), "mosec-batched": lambda port: mosec(port, True),
    "litserve": litserve, "bentoml": bentoml, "mlserver": mlserver, "triton": triton,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", required=True, help="the weights, an .npz")
    args = parser.parse_args()
    os.environ[MODEL] = str(Path(args.model).resolve())
    PEERS[args.peer](args.port)


if __name__ == "__main__":
    main()
