"""Models as programs: export with torch.export, load what the registry holds, predict on arrays.

Refuses a file whose bytes are not those registered, whatever would run code on loading, and
python models unless the caller allows code.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import inspect
import os
import shutil
import sys
import tempfile
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sundog.errors import Corrupt, NotFound, SundogError, Unsafe, first_line
from sundog.storage.models import ModelVersion
from sundog.storage.root import Root, file_digest
from sundog.storage.safety import check_safe
from sundog.storage.signature import ANY, Signature, TensorSpec, datatype_of

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["Model", "check_safe", "export_program", "load_model", "signature_of_program"]

PROGRAM = "model.pt2"
"""The path of an exported program inside a version."""

_TRACED_BATCH = 4  # 0 and 1 would be baked into the program; so would a 2 in some models
_MODEL, _OWN = "sundog-model-", "sundog-own-"
"""What folders of files that are loaded are called."""
_environment = threading.Lock()

Arrays = Mapping[str, "np.ndarray[Any, Any]"]


class Model(Protocol):
    """A loaded model. `predict` takes and gives arrays by name, shapes as in `signature`.

    A python model may return an iterator or an async iterator of such dicts (a stream).
    """

    signature: Signature

    def predict(self, inputs: Arrays) -> Any: ...


def export_program(
    model: torch.nn.Module,
    example_inputs: Mapping[str, torch.Tensor],
    path: Path,
    *,
    dynamic_batch: bool = True,
) -> Signature:
    """Export `model` for inference to a `.pt2` file and return its signature.

    `example_inputs` maps the parameter names of `forward` to tensors. With `dynamic_batch` the
    first dimension of every input is any size; of the examples' other sizes the program is fixed.
    Outputs are named by the dict that `forward` returns, else `output`, or `output_<i>` of a tuple.
    """
    import torch

    examples = {name: tensor.detach().cpu() for name, tensor in example_inputs.items()}
    if any(tensor.device.type != "cpu" for tensor in model.parameters()):
        model = copy.deepcopy(model).cpu()  # the program is exported for any device
    shapes: dict[str, Any] | None = None
    if dynamic_batch:
        batch = torch.export.Dim("batch")
        examples = {name: _grown(tensor) for name, tensor in examples.items()}
        shapes = {name: {0: batch} if t.ndim else None for name, t in examples.items()}
    training = model.training
    try:
        with torch.no_grad():
            program = torch.export.export(model.eval(), (), kwargs=examples, dynamic_shapes=shapes)
    except (RuntimeError, TypeError, ValueError) as error:
        raise SundogError(
            f"{type(model).__name__} does not export: {first_line(error)}",
            fix="make forward take tensors of any batch size without branching on their values, "
            "or register it as a python model",
        ) from error
    finally:
        model.train(training)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.export.save(program, path)
    return signature_of_program(program)


def signature_of_program(program: torch.export.ExportedProgram) -> Signature:
    """Names, datatypes and shapes that an exported program takes and gives."""
    nodes = {node.name: node for node in program.graph.nodes}
    inputs = [
        _spec(name, nodes[node].meta["val"])
        for name, node in zip(
            _input_names(program), program.graph_signature.user_inputs, strict=True
        )
    ]
    outputs = [
        _spec(name, nodes[str(node)].meta["val"])
        for name, node in zip(
            _output_names(program), program.graph_signature.user_outputs, strict=True
        )
    ]
    return Signature(tuple(inputs), tuple(outputs))


def load_program(path: Path) -> torch.export.ExportedProgram:
    """Load an exported program that may come from anybody. Unsafe, Corrupt."""
    import torch

    check_safe(path)
    with _weights_only():
        try:
            program = torch.export.load(path)
        except (RuntimeError, ValueError, KeyError, AssertionError, TypeError) as error:
            raise Corrupt(
                f"{path.name} does not load: {str(error).strip().partition(chr(10))[0]}",
                fix="export it again with the torch that Sundog pins",
            ) from error
    # Guards are Python text from the file; the signature checks shapes instead.
    program._guards_code = []
    return program


def load_model(
    root: Root,
    version: ModelVersion,
    *,
    allow_code: bool = False,
    device: str = "cpu",
    scratch: str | None = None,
) -> Model:
    """Fetch a version, check every hash, and load it. Corrupt, Unsafe, NotFound.

    `allow_code` admits python models, which run their own source; their files lie in a private
    folder below `scratch` (or the system's) that lives as long as the model. A process that is killed
    leaves it, so `scratch` should be a place that is cleared.
    """
    if version.kind == "python" and not allow_code:
        raise _runs_code(version)
    folder = Path(tempfile.mkdtemp(prefix=_MODEL, dir=scratch))
    try:
        _fetch(root, version, folder)
        if version.kind == "python":
            return _PythonModel(version, folder)
        if PROGRAM not in version.files:
            raise Corrupt(f"{version.ref} has no {PROGRAM}", fix="register it again")
        model = _ExportedModel(version.signature, load_program(folder / PROGRAM), device)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    return model


def load_own(
    root: Root, version: ModelVersion, *, allow_code: bool, scratch: str | None = None
) -> Any:
    """A python version's own object, whatever its methods are; beside a model that is loaded already.
    Corrupt, Unsafe, NotFound, SundogError."""
    if version.kind != "python":
        raise SundogError(f"{version.ref} is {version.kind}, not python", "register its source")
    if not allow_code:
        raise _runs_code(version)
    folder = Path(tempfile.mkdtemp(prefix=_OWN, dir=scratch))
    try:
        _fetch(root, version, folder)
        _forget_others(_OWN)
        made = _made(_class_of(version, folder), folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(made, shutil.rmtree, folder, ignore_errors=True)
    return made


def _runs_code(version: ModelVersion) -> Unsafe:
    return Unsafe(
        f"{version.ref} is a python model: loading it runs its code",
        fix="say `allow_code: true` in the service if you trust who registered it",
    )


def state_of(root: Root, version: ModelVersion) -> dict[str, torch.Tensor]:
    """The parameters and buffers of an exported version by name. Corrupt, Unsafe, NotFound."""
    folder = Path(tempfile.mkdtemp(prefix="sundog-model-"))
    try:
        _fetch(root, version, folder)
        if PROGRAM not in version.files:
            raise Corrupt(f"{version.ref} has no {PROGRAM}", fix="register it again")
        return dict(load_program(folder / PROGRAM).state_dict)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _ExportedModel:
    def __init__(
        self, signature: Signature, program: torch.export.ExportedProgram, device: str
    ) -> None:
        import torch
        import torch.export.passes

        self.signature = signature
        self._device = torch.device(device)
        self._outputs = _output_names(program)
        self._num_positional = program.call_spec.in_spec.children()[0].num_leaves
        self._inputs = _input_names(program)
        if self._device.type != "cpu":
            # Constants that the traced code made on the CPU must move too.
            program = torch.export.passes.move_to_device_pass(program, self._device)
        self._module = program.module(check_guards=False)
        self._direct = _direct_call(program)

    def predict(self, inputs: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        import torch

        tensors = {n: torch.as_tensor(a, device=self._device) for n, a in inputs.items()}
        if self._direct is not None:
            with torch.inference_mode():
                values = self._direct([tensors[n] for n in self._inputs])
            return {n: v.cpu().numpy() for n, v in zip(self._outputs, values, strict=True)}
        positional = [tensors.pop(name) for name in self._inputs[: self._num_positional]]
        with torch.inference_mode():
            given = self._module(
                *positional, **{n: tensors[n] for n in self._inputs if n in tensors}
            )
        values = torch.utils._pytree.tree_leaves(given)
        return {n: v.cpu().numpy() for n, v in zip(self._outputs, values, strict=True)}


class _PythonModel:
    """Runs `predict` of the version's own class, built with the folder of its files if it asks."""

    def __init__(self, version: ModelVersion, folder: Path) -> None:
        self.signature = version.signature
        self._cleanup = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        _forget_others(_MODEL)
        self._own = _made(_class_of(version, folder), folder)
        predict = getattr(self._own, "predict", None)
        self.streams = inspect.isgeneratorfunction(predict) or inspect.isasyncgenfunction(predict)
        if not callable(predict):
            raise SundogError(
                f"{version.entry} of {version.ref} has no predict", fix="give it predict(inputs)"
            )

    def predict(self, inputs: Arrays) -> Any:
        given = self._own.predict(dict(inputs))
        if isinstance(given, Iterator | AsyncIterator) or inspect.isawaitable(given):
            return given
        return dict(given)


def _made(cls: Any, folder: Path) -> Any:
    return cls(folder) if inspect.signature(cls).parameters else cls()


def _forget_others(prefix: str) -> None:
    """Two versions bring modules of the same names; each load starts without the other's, which lie in
    a folder that is called so."""
    for loaded, other in list(sys.modules.items()):
        place = getattr(other, "__file__", None) or ""
        if Path(place).parts[:-1] and any(p.startswith(prefix) for p in Path(place).parts):
            del sys.modules[loaded]
    sys.path[:] = [p for p in sys.path if not Path(p).name.startswith(prefix)]


def _class_of(version: ModelVersion, folder: Path) -> Any:
    module, _, name = (version.entry or "").partition(":")
    known = version.ref
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        loaded = importlib.import_module(module)
        if not Path(loaded.__file__ or "").is_relative_to(folder):
            raise ImportError(f"another module is called {module} here: {loaded.__file__}")
        return getattr(loaded, name)
    except (ImportError, AttributeError, ValueError) as error:
        raise NotFound(
            f"{known} does not load its {version.entry}: {error}",
            fix="register it again with every module that it imports, as entry 'module:Class'",
        ) from error


def _fetch(root: Root, version: ModelVersion, folder: Path) -> None:
    for path, expected in version.files.items():
        place = (folder / path).resolve()
        if folder.resolve() not in place.parents:
            raise Unsafe(f"{version.ref} has a file outside its folder: {path!r}")
        root.download(version.key(path), place)
        found = file_digest(place)
        if found != expected:
            raise Corrupt(
                f"{path} of {version.ref} is not what was registered (sha256 {found[:12]}…, "
                f"expected {expected[:12]}…)",
                fix=f"see `sundog models verify {version.ref}`; serve another version",
            )


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """A second belt: even a pickle that the check missed meets torch's own refusal."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    with _environment:
        before = os.environ.get(name)
        os.environ[name] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def _grown(tensor: torch.Tensor) -> torch.Tensor:
    """The example repeated along its batch, so that its size is no special case."""
    if tensor.ndim == 0:
        return tensor
    times = -(-_TRACED_BATCH // max(1, tensor.shape[0]))
    return tensor.repeat(times, *[1] * (tensor.ndim - 1))[:_TRACED_BATCH]


def _spec(name: str, value: Any) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else ANY for size in value.shape)
    return TensorSpec(name, datatype_of(str(value.dtype).removeprefix("torch.")), shape)


def _input_names(program: torch.export.ExportedProgram) -> list[str]:
    positional, named = program.call_spec.in_spec.children()
    users = [str(name) for name in program.graph_signature.user_inputs]
    return [*users[: positional.num_leaves], *map(str, named.context or ())]


def _direct_call(
    program: torch.export.ExportedProgram,
) -> Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]] | None:
    """The program's graph with its weights bound: the same operations without the bookkeeping of
    `module()`, which costs ten times as much as a small model itself.

    None where the graph changes state or takes or gives anything but tensors.
    """
    from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

    signature = program.graph_signature
    if any(
        spec.kind is not OutputKind.USER_OUTPUT or not isinstance(spec.arg, TensorArgument)
        for spec in signature.output_specs
    ):
        return None
    bound: list[torch.Tensor | None] = []
    for spec in signature.input_specs:
        weight = None
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            weight = program.state_dict.get(spec.target, program.constants.get(spec.target))
        if weight is None and spec.kind is not InputKind.USER_INPUT:
            return None
        if not isinstance(spec.arg, TensorArgument):
            return None
        bound.append(weight)
    slots = [i for i, weight in enumerate(bound) if weight is None]
    forward = program.graph_module.forward

    def call(tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        arguments = list(bound)
        for slot, tensor in zip(slots, tensors, strict=True):
            arguments[slot] = tensor
        return forward(*arguments)

    return call


def _output_names(program: torch.export.ExportedProgram) -> list[str]:
    spec = program.call_spec.out_spec
    if spec.is_leaf():
        return ["output"]
    if spec.type is dict and spec.num_leaves == spec.num_children:
        return [str(key) for key in spec.context]
    return [f"output_{i}" for i in range(spec.num_leaves)]
