"""Decides whether loading a model file would run somebody's code, and refuses if it could.

`torch.export.load` unpickles, evaluates shape expressions with sympy, looks operators up by
attribute and generates Python from names. So an archive is checked member by member, by the same
reader that loads it, and only what an export writes is let through. Loads nothing itself.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sundog.errors import Unsafe, first_line

_FIX = (
    "do not load it; export the model again with torch.export.save from code you trust "
    "(what needs code of its own is registered as a python model)"
)
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib")

# What torch 2.13 writes, below the archive's one folder. Compiled libraries
# (data/aotinductor) and everything else are not on the list on purpose.
_MEMBER = re.compile(
    r"archive_format|archive_version|version|byteorder|\.data/(version|serialization_id)"
    r"|\.format_version|\.storage_alignment|models/\w+\.json|data/sample_inputs/\w+\.pt"
    r"|data/(weights|constants)/[\w.-]+|extra/[\w./-]+"
)
_CONFIG = re.compile(r"data/(weights|constants)/\w+_config\.json")
_NAME = re.compile(r"[\w.]*", re.ASCII)
_OPERATOR = re.compile(r"torch\.ops\.(aten|prims|higher_order)\.(\w+)(?:\.(\w+))?", re.ASCII)
_NO_OPERATORS = {"from_file", "save", "load"}
_HIGHER_ORDER = {
    "associative_scan",
    "cond",
    "invoke_subgraph",
    "map_impl",
    "scan",
    "while_loop",
    "wrap_with_autocast",
    "wrap_with_set_grad_enabled",
}
_PLAIN_OPERATORS = {
    *(f"_operator.{name}" for name in (
        "getitem", "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "pos", "abs",
        "eq", "ne", "lt", "le", "gt", "ge", "and_", "or_", "xor", "not_", "invert", "lshift",
        "rshift",
    )),
    *(f"math.{name}" for name in ("ceil", "floor", "trunc", "sqrt", "pow", "exp", "log")),
    *(f"torch.sym_{name}" for name in (
        "int", "float", "not", "max", "min", "ite", "sqrt", "sum", "fresh_size",
    )),
    "torch._sym_sqrt",
}  # fmt: skip
_EXPRESSION_NODES = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp,
    ast.UnaryOp, ast.Compare, ast.operator, ast.unaryop, ast.cmpop,
)  # fmt: skip
_FUNCTION = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Mod|Min|Max|Abs|floor|ceiling|Eq|Ne|Equality"
    r"|Unequality|Lt|Le|Gt|Ge|(Strict)?(Less|Greater)Than|And|Or|Not|Piecewise|ITE|Where|FloorDiv"
    r"|CeilDiv|CleanDiv|ModularIndexing|PythonMod|IntTrueDiv|FloatTrueDiv|PowByNatural"
    r"|FloatPow|ToFloat|TruncToInt|TruncToFloat|RoundToInt|RoundDecimal|CeilToInt|FloorToInt"
    r"|LShift|RShift|Identity|BitwiseFn_bitwise_(and|or|xor)"
)
_GUARD_NODES = (*_EXPRESSION_NODES, ast.Subscript, ast.Attribute, ast.BoolOp, ast.boolop)
_GUARD_ATTRIBUTES = {"size", "stride", "storage_offset", "shape", "ndim", "numel"}
_SYMBOL = re.compile(r"[a-z_]{1,8}\d*|true|false|oo|int_oo", re.ASCII)
_TREES = {None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"}
_NAME_KEYS = {"name", "fqn", "parameter_name", "buffer_name", "tensor_constant_name"}
_CUSTOM_KEYS = {"as_custom_obj", "custom_obj_name", "class_fqn"}


class _Refused(Exception):
    """Why, in words."""


def check_safe(path: Path) -> None:
    """Unsafe unless loading this file runs nothing of its author's. Runs nothing either.

    `.pt2` archives are checked whole; other pickled files must load under `weights_only=True`.
    Files that no loader of ours unpickles (safetensors, JSON, ONNX) pass.
    """
    try:
        if path.suffix == ".pt2":
            _check_archive(path)
        elif path.suffix in _PICKLES:
            _check_pickle(path.read_bytes(), path.name)
    except _Refused as refusal:
        raise Unsafe(f"{path.name} was refused before loading: {refusal}", fix=_FIX) from None


def _check_archive(path: Path) -> None:
    from torch.export.pt2_archive._package import PT2ArchiveReader

    _check_container(path)
    try:
        reader = PT2ArchiveReader(str(path))
    except RuntimeError as error:
        raise _Refused(f"it is not a torch.export archive ({first_line(error)})") from None
    with reader:
        names = reader.get_file_names()
        if "archive_version" not in names:
            raise _Refused("it is not a torch.export archive of torch 2.8 or later")
        for name in names:
            if not _MEMBER.fullmatch(name) or ".." in name:
                raise _Refused(f"its member {name!r} is not part of an exported program")
        for folder in ("weights", "constants"):
            _check_payloads(reader, names, f"data/{folder}/")
        for name in names:
            if name.startswith("data/sample_inputs/"):
                data = reader.read_bytes(name)
                if data:
                    _check_pickle(data, name)
            elif name.startswith("models/"):
                _check_program(_parsed(reader.read_bytes(name), name))


def _check_container(path: Path) -> None:
    """Two ZIP readers must not see two different archives in one file."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise _Refused(f"it is not a ZIP archive ({first_line(error)})") from None
    if len(set(names)) != len(names):
        raise _Refused("it holds two members of one name")
    if len({name.split("/", 1)[0] for name in names}) != 1 or any("/" not in n for n in names):
        raise _Refused("its members are not in one folder, as an export writes them")


def _check_payloads(reader: Any, names: list[str], folder: str) -> None:
    raw: set[str] = set()
    pickled: set[str] = set()
    for name in names:
        if name.startswith(folder) and _CONFIG.fullmatch(name):
            config = _parsed(reader.read_bytes(name), name).get("config")
            for entry in config.values() if isinstance(config, dict) else ():
                (pickled if entry.get("use_pickle") is not False else raw).add(
                    str(entry.get("path_name"))
                )
    for name in names:
        member = name.removeprefix(folder)
        if not name.startswith(folder) or _CONFIG.fullmatch(name):
            continue
        if member.startswith(("custom_obj", "opaque_obj")):
            raise _Refused(f"its member {name!r} is an object of a class of its own")
        if member in pickled or member not in raw:
            _check_pickle(reader.read_bytes(name), name)


def _check_pickle(data: bytes, name: str) -> None:
    import torch

    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global|class|type) ([\w.]+)", str(error))
        what = f"pickled code ({found[1]})" if found else "a pickle that is more than tensors"
        raise _Refused(f"its member {name!r} holds {what}") from None
    except Exception as error:  # noqa: BLE001 - a hostile file may fail in any way; it is refused
        raise _Refused(f"its member {name!r} does not load ({first_line(error)})") from None


def _check_program(document: dict[str, Any]) -> None:
    for key, value in _pairs(document):
        if key in ("target", "as_operator"):
            _check_operator(value)
        elif key == "expr_str":
            _check_expression(value)
        elif key in ("in_spec", "out_spec"):
            _check_tree(_parsed(str(value).encode(), key, kind=list))
        elif key in _NAME_KEYS or key == "forward_arg_names":
            _check_names(value if isinstance(value, list) else [value])
        elif key in ("tensor_values", "range_constraints") or key.startswith("sym_"):
            if isinstance(value, dict):
                _check_names(list(value))
        elif (key in _CUSTOM_KEYS or key == "custom_obj_values") and value:
            raise _Refused("it uses an object of a class of its own")
        elif key == "guards_code":
            for guard in value or ():
                _check_guard(guard)
        elif key == "treespec_namedtuple_fields" and value:
            raise _Refused("it takes or gives a named tuple; use a dict")


def _pairs(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item
            yield from _pairs(item)
    elif isinstance(value, list):
        for item in value:
            yield from _pairs(item)


def _check_operator(target: Any) -> None:
    import torch

    if target in _PLAIN_OPERATORS:
        return
    match = _OPERATOR.fullmatch(target) if isinstance(target, str) else None
    if not match or match[2] in _NO_OPERATORS:
        raise _Refused(f"it calls {target!r}, which is not a tensor operator")
    namespace, name, overload = match.groups()
    if namespace == "higher_order":
        if name not in _HIGHER_ORDER or overload:
            raise _Refused(f"it calls {target!r}, which is not on the list of control flow")
        return
    packet = getattr(getattr(torch.ops, namespace), name, None)
    operator = getattr(packet, overload or "default", None)
    if not isinstance(operator, torch._ops.OpOverload):
        raise _Refused(f"it calls {target!r}, which is not a tensor operator here")


def _check_expression(text: Any) -> None:
    """Shape expressions reach sympy, which evaluates them as Python."""
    try:
        tree = ast.parse(str(text), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _Refused(f"its shape expression {str(text)[:80]!r} is not one") from None
    names = set()  # of symbols, the one place where a string may stand
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = node.func
            if not isinstance(function, ast.Name) or not _FUNCTION.fullmatch(function.id):
                raise _Refused(f"its shape expression {str(text)[:80]!r} calls something")
            if function.id == "Symbol" and node.args:
                names.add(node.args[0])
    for node in ast.walk(tree):
        good = isinstance(node, _EXPRESSION_NODES)
        if isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            good = node in names and bool(_SYMBOL.fullmatch(str(node.value)))
        if isinstance(node, ast.Name):
            good = bool(_SYMBOL.fullmatch(node.id) or _FUNCTION.fullmatch(node.id))
        if not good:
            raise _Refused(f"its shape expression {str(text)[:80]!r} is more than arithmetic")


def _check_guard(text: Any) -> None:
    """Guards on the inputs' shapes are Python that a loaded program compiles."""
    try:
        nodes = list(ast.walk(ast.parse(str(text).strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _Refused(f"its guard {str(text)[:80]!r} is not an expression") from None
    for node in nodes:
        good = isinstance(node, _GUARD_NODES)
        if isinstance(node, ast.Attribute):
            good = node.attr in _GUARD_ATTRIBUTES
        elif isinstance(node, ast.Name):
            good = node.id == "L" or bool(_FUNCTION.fullmatch(node.id))
        elif isinstance(node, ast.Call):
            good = isinstance(node.func, ast.Attribute | ast.Name)
        if not good:
            raise _Refused(f"its guard {str(text)[:80]!r} is more than arithmetic on shapes")


def _check_tree(tree: list[Any]) -> None:
    """Tree descriptions may import a module by name; only plain containers pass."""
    for key, value in _pairs(tree):
        if key == "type" and value not in _TREES:
            raise _Refused(f"it takes or gives a {value}; use tensors, tuples, lists and dicts")
        if key == "context" and value is not None:
            context = json.loads(value) if isinstance(value, str) else value
            keys = context if isinstance(context, list) else [] if context is None else [context]
            _check_names(keys)


def _check_names(names: list[Any]) -> None:
    for name in names:
        # They end up in generated Python.
        if name is not None and not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise _Refused(f"the name {str(name)[:80]!r} in it is not a name")


def _parsed(data: bytes, name: str, kind: type = dict) -> Any:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, kind):
        raise _Refused(f"its member {name!r} is not JSON as an export writes it")
    return value
