"""Exported programs and python models: names, batches, hashes, who may run code."""

import asyncio

import numpy as np
import pytest
import torch

from sundog.errors import Corrupt, NotFound, SundogError, Unsafe
from sundog.storage.models import Registry, Signature, TensorSpec
from sundog.storage.programs import check_safe, export_program, load_model
from sundog.storage.root import open_root


@pytest.fixture
def registry(tmp_path):
    return Registry(open_root(str(tmp_path / "root")))


@pytest.fixture
def loaded(registry, tmp_path):
    """Export, register, load."""

    def call(model, examples, **more):
        path = tmp_path / "model.pt2"
        signature = export_program(model, examples, path, **more)
        version = registry.register(
            "m", {"model.pt2": path}, kind="torch-export", signature=signature, metrics={},
            lineage={}, new_signature=True,
        )  # fmt: skip
        return load_model(registry.root, version)

    return call


class Two(torch.nn.Module):
    """Two inputs, a tuple of outputs, dropout, an unused order of arguments."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(10, 4)
        self.drop = torch.nn.Dropout(0.9)

    def forward(self, tokens, scale):
        x = self.drop(self.embed(tokens)) * scale[:, None, None]
        return x.mean(1), x.sum((1, 2)).to(torch.float64)


class Pool(torch.nn.Module):
    """Convolution and pooling: shapes whose batch meets many guards."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
            torch.nn.MaxPool2d(2), torch.nn.Flatten(), torch.nn.Linear(36, 3),
        )  # fmt: skip

    def forward(self, image):
        return self.layers(image)


class Attention(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x):
        return {"y": self.layer(x).softmax(-1)}


def test_inputs_and_outputs_have_the_models_own_names(loaded):
    # The examples come in another order than forward takes them.
    model = loaded(Two(), {"scale": torch.ones(1), "tokens": torch.zeros(1, 6, dtype=torch.long)})
    inputs = {t.name: t for t in model.signature.inputs}
    assert inputs["tokens"] == TensorSpec("tokens", "INT64", (-1, 6))
    assert inputs["scale"] == TensorSpec("scale", "FP32", (-1,))
    assert model.signature.outputs == (
        TensorSpec("output_0", "FP32", (-1, 4)), TensorSpec("output_1", "FP64", (-1,)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("model", "examples"),
    [
        (Two(), {"tokens": torch.zeros(2, 6, dtype=torch.long), "scale": torch.ones(2)}),
        (Pool(), {"image": torch.zeros(1, 1, 8, 8)}),
        (Attention(), {"x": torch.zeros(3, 5, 8)}),
    ],
)
def test_any_batch_size_gives_what_the_model_gives(loaded, model, examples):
    program = loaded(model, examples)
    torch.manual_seed(0)
    for size in (1, 2, 3, 17):
        given = {name: _random(size, tensor) for name, tensor in examples.items()}
        answer = program.predict({name: t.numpy() for name, t in given.items()})
        with torch.no_grad():
            expected = _named(model.eval()(**given))
        assert answer.keys() == expected.keys()
        for name, tensor in expected.items():
            np.testing.assert_allclose(answer[name], tensor.numpy(), rtol=1e-5, atol=1e-6)


def _random(size, like):
    shape = (size, *like.shape[1:])
    return torch.randint(0, 9, shape) if like.dtype == torch.long else torch.rand(shape)


def _named(given):
    if isinstance(given, torch.Tensor):
        return {"output": given}
    if isinstance(given, tuple):
        return {f"output_{i}": tensor for i, tensor in enumerate(given)}
    return given


class MakesTensors(torch.nn.Module):
    """Creates tensors on the device of its trace; they must follow it to another one."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x) + torch.arange(2, dtype=torch.float32)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_program_moves_to_the_gpu_with_the_tensors_that_it_makes(registry, tmp_path):
    path = tmp_path / "model.pt2"
    export_program(MakesTensors().cuda(), {"x": torch.zeros(1, 4)}, path)
    version = registry.import_export("m", path)
    x = {"x": np.random.default_rng(0).random((3, 4), dtype=np.float32)}
    on_cpu = load_model(registry.root, version).predict(x)["output"]
    on_gpu = load_model(registry.root, version, device="cuda").predict(x)["output"]
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-4, atol=1e-5)


def test_the_tensors_that_a_program_makes_move_to_its_device(registry, tmp_path):
    """Without a GPU: on torch's meta device, which fails if anything stayed on the CPU."""
    path = tmp_path / "model.pt2"
    export_program(MakesTensors(), {"x": torch.zeros(1, 4)}, path)
    version = registry.import_export("m", path)
    model = load_model(registry.root, version, device="meta")
    devices = {
        str(node.kwargs["device"]) for node in model._module.graph.nodes if "device" in node.kwargs
    }
    assert devices == {"meta"}
    assert {p.device.type for p in model._module.parameters()} == {"meta"}


def test_exporting_leaves_the_model_in_training(tmp_path):
    model = Two().train()
    export_program(
        model, {"tokens": torch.zeros(1, 6, dtype=torch.long), "scale": torch.ones(1)},
        tmp_path / "m.pt2",
    )  # fmt: skip
    assert model.training
    check_safe(tmp_path / "m.pt2")


def test_a_model_that_cannot_be_exported_says_what_to_do(tmp_path):
    class Branches(torch.nn.Module):
        def forward(self, x):
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(SundogError, match="Branches does not export") as raised:
        export_program(Branches(), {"x": torch.ones(2, 3)}, tmp_path / "m.pt2")
    assert "python model" in raised.value.fix


def test_an_import_takes_the_programs_own_signature(registry, tmp_path):
    path = tmp_path / "elsewhere.pt2"
    signature = export_program(Pool(), {"image": torch.zeros(1, 1, 8, 8)}, path)
    version = registry.import_export("pool", path, alias="champion")
    assert version.signature == signature
    assert registry.get("pool@champion") == version
    other = Signature((TensorSpec("picture", "FP32", (-1, 1, 8, 8)),), signature.outputs)
    with pytest.raises(SundogError, match="'image'"):
        registry.import_export("pool", path, other)
    with pytest.raises(NotFound):
        registry.import_export("pool", tmp_path / "none.pt2")


def test_bytes_that_are_not_those_registered_are_not_loaded(registry, tmp_path):
    path = tmp_path / "model.pt2"
    export_program(Pool(), {"image": torch.zeros(1, 1, 8, 8)}, path)
    version = registry.import_export("pool", path)
    stored = registry.root.local_path(version.key("model.pt2"))
    data = bytearray(stored.read_bytes())
    data[len(data) // 2] ^= 1
    stored.write_bytes(data)
    with pytest.raises(Corrupt, match="not what was registered"):
        load_model(registry.root, version)
    assert registry.verify("pool@1")


# -- python models -------------------------------------------------------------------------

SIGNATURE = Signature((TensorSpec("x", "FP32", (-1,)),), (TensorSpec("y", "FP32", (-1,)),))


def source(folder, factor, ran=None):
    folder.mkdir()
    touch = f"open({str(ran)!r}, 'w').close()\n" if ran else ""
    (folder / "factor.py").write_text(f"FACTOR = {factor}\n")
    (folder / "words.txt").write_text("some data")
    (folder / "mine.py").write_text(
        f"{touch}"
        "from factor import FACTOR\n"
        "class Model:\n"
        "    def __init__(self, folder):\n"
        "        self.words = (folder / 'words.txt').read_text()\n"
        "    def predict(self, inputs):\n"
        "        return {'y': inputs['x'] * FACTOR}\n"
        "class Stream:\n"
        "    async def predict(self, inputs):\n"
        "        for i in range(3):\n"
        "            yield {'y': inputs['x'] + i}\n"
    )
    return folder


def test_a_python_model_runs_only_where_code_is_allowed(registry, tmp_path):
    ran = tmp_path / "ran"
    version = registry.import_python("py", source(tmp_path / "a", 3, ran), "mine:Model", SIGNATURE)
    assert version.kind == "python"
    assert set(version.files) == {"mine.py", "factor.py", "words.txt"}
    with pytest.raises(Unsafe, match="python model") as raised:
        load_model(registry.root, version)
    assert "allow_code" in raised.value.fix
    assert not ran.exists()
    model = load_model(registry.root, version, allow_code=True)
    assert ran.exists()
    assert model.predict({"x": np.array([2.0])})["y"] == [6.0]


def test_a_python_model_s_files_lie_where_they_are_told_to(registry, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    version = registry.import_python("py", source(tmp_path / "a", 3), "mine:Model", SIGNATURE)
    model = load_model(registry.root, version, allow_code=True, scratch=str(scratch))
    [folder] = scratch.iterdir()
    assert (folder / "mine.py").exists()
    assert folder.stat().st_mode & 0o077 == 0
    assert model.predict({"x": np.array([2.0])})["y"] == [6.0]


def test_a_model_that_does_not_load_leaves_nothing_behind(registry, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    version = registry.import_python("py", source(tmp_path / "a", 3), "mine:Model", SIGNATURE)
    stored = registry.root.local_path(version.key("factor.py"))
    stored.write_text("FACTOR = 4\n")
    with pytest.raises(Corrupt, match="not what was registered"):
        load_model(registry.root, version, allow_code=True, scratch=str(scratch))
    stored.unlink()
    with pytest.raises(NotFound):
        load_model(registry.root, version, allow_code=True, scratch=str(scratch))
    assert list(scratch.iterdir()) == []


def test_two_versions_of_a_python_model_keep_their_own_modules(registry, tmp_path):
    one = registry.import_python("py", source(tmp_path / "a", 3), "mine:Model", SIGNATURE)
    two = registry.import_python("py", source(tmp_path / "b", 5), "mine:Model", SIGNATURE)
    first = load_model(registry.root, one, allow_code=True)
    second = load_model(registry.root, two, allow_code=True)
    x = {"x": np.array([1.0])}
    assert (first.predict(x)["y"], second.predict(x)["y"]) == ([3.0], [5.0])


def test_a_python_model_may_stream(registry, tmp_path):
    version = registry.import_python("py", source(tmp_path / "a", 3), "mine:Stream", SIGNATURE)
    model = load_model(registry.root, version, allow_code=True)

    async def gather():
        return [float(part["y"][0]) async for part in model.predict({"x": np.array([1.0])})]

    assert asyncio.run(gather()) == [1.0, 2.0, 3.0]


def test_changed_source_is_not_run(registry, tmp_path):
    version = registry.import_python("py", source(tmp_path / "a", 3), "mine:Model", SIGNATURE)
    ran = tmp_path / "ran"
    stored = registry.root.local_path(version.key("mine.py"))
    stored.write_text(f"open({str(ran)!r}, 'w').close()\n" + stored.read_text())
    with pytest.raises(Corrupt):
        load_model(registry.root, version, allow_code=True)
    assert not ran.exists()


def test_an_entry_that_is_not_there_is_refused(registry, tmp_path):
    folder = source(tmp_path / "a", 3)
    for entry in ("other:Model", "mine", "mine:"):
        with pytest.raises(SundogError, match="not in"):
            registry.import_python("py", folder, entry, SIGNATURE)
    version = registry.import_python("py", folder, "mine:Missing", SIGNATURE)
    with pytest.raises(NotFound, match="mine:Missing"):
        load_model(registry.root, version, allow_code=True)
