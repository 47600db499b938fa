"""YAML to spec. Every error says the file, the line, the key and the nearest valid one.

Knows nothing of any one spec: it walks the model's fields to find what would have been right.
"""

from __future__ import annotations

import difflib
import re
import types
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from sundog.errors import SpecError

S = TypeVar("S", bound=BaseModel)
Location = tuple[str | int, ...]


def load(path: str | Path, model: type[S]) -> S:
    """The spec in the file at `path`. Raises SpecError with every fault found in it."""
    return parse(read_text(path), model, str(path))


def read_text(path: str | Path) -> str:
    """The text of a spec file; a missing or unreadable one is a SpecError that says where it looked."""
    file = Path(path)
    try:
        return file.read_text("utf-8")
    except FileNotFoundError:
        near = difflib.get_close_matches(
            file.name, [p.name for p in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
        )
        hint = f"did you mean {str(file.parent / near[0])!r}?" if near else "is the path right?"
        raise SpecError(f"{path}: there is no such file in {Path.cwd()}", hint) from None
    except IsADirectoryError:
        raise SpecError(f"{path}: this is a folder", "name the spec file inside it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read: {error}", "write it as UTF-8 text") from None


def parse(text: str, model: type[S], name: str = "<spec>") -> S:
    """The spec in `text`; `name` is what errors call it."""
    data, lines = read_yaml(text, name)
    return validate(data, model, name, lines)


def read_yaml(text: str, name: str) -> tuple[Any, dict[Location, int]]:
    """Plain data, and the line (from 1) on which each key or item stands."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise SpecError(f"{name}{line}: not YAML: {error.problem}", _yaml_fix(text, mark)) from None
    except (yaml.YAMLError, ValueError) as error:
        raise SpecError(f"{name}: not YAML: {error}", "is this a text file?") from None
    lines: dict[Location, int] = {}
    if node is not None:
        _mark(node, (), lines, name)
    return data, lines


def validate(
    data: Any, model: type[S], name: str, lines: dict[Location, int], prefix: Location = ()
) -> S:
    """`data` as a `model`. `prefix` is where `data` sits inside the file that `lines` describes."""
    if not isinstance(data, dict):
        what = "empty" if data is None else f"a {type(data).__name__}, not a mapping"
        needed = ", ".join(f"{f.alias or n}:" for n, f in model.model_fields.items()
                           if f.is_required())  # fmt: skip
        raise SpecError(f"{name}: the spec is {what}", f"it needs at least {needed}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        errors = _likeliest_branches(error.errors(), data)
    faults = [_explain(e, model, data, name, lines, prefix) for e in errors]
    raise SpecError("\n".join(dict.fromkeys(faults)))


def _likeliest_branches(errors: list[Any], data: Any) -> list[Any]:
    """pydantic tells the faults of every branch of a union; people want those of the one they meant.

    That is the branch with the fewest faults other than a missing key, then the fewest at all.
    """
    branches: dict[Location, dict[str | int, list[Any]]] = {}
    kept: list[Any] = []
    for error in errors:
        at, tag = _union_tag(error["loc"], data)
        if tag is None:
            kept.append(error)
        else:
            branches.setdefault(at, {}).setdefault(tag, []).append(error)
    for at, by_tag in branches.items():
        unknown = [[e for e in es if e["type"] == "extra_forbidden"] for es in by_tag.values()]
        if all(unknown):
            # Nobody knows the key: one word about it, with the keys of all branches.
            kept.append({**unknown[0][0], "loc": (*at, unknown[0][0]["loc"][-1])})
        else:
            kept += sorted(by_tag.values(), key=_strangeness)[0]
    return kept


def _strangeness(errors: list[Any]) -> tuple[int, int]:
    return sum(e["type"] != "missing" for e in errors), len(errors)


def _union_tag(loc: Location, data: Any) -> tuple[Location, Any]:
    """Where a union sits and which branch this is: the first part of `loc` that is not in the data."""
    here = data
    for i, part in enumerate(loc[:-1]):
        if not _holds(here, part):
            return loc[:i], part
        here = here[part]
    return loc, None


def _holds(here: Any, part: str | int) -> bool:
    return (isinstance(here, dict) and part in here) or (
        isinstance(here, list) and isinstance(part, int) and part < len(here)
    )


def _yaml_fix(text: str, mark: Any) -> str:
    if mark is not None:
        rows = text.splitlines()
        row = rows[mark.line] if mark.line < len(rows) else ""
        if "\t" in row:
            return "indent with spaces, not tabs"
        if row.strip():
            return f"near: {row.strip()}"
    return "check brackets, quotes and indentation"


def _mark(node: yaml.Node, at: Location, lines: dict[Location, int], name: str) -> None:
    lines.setdefault(at, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: dict[Any, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen and key.value != "<<":
                raise SpecError(
                    f"{name}:{line}: {_dotted((*at, key.value))}: given twice",
                    f"first on line {seen[key.value]}; keep one",
                )
            seen[key.value] = line
            lines[(*at, key.value)] = line
            _mark(value, (*at, key.value), lines, name)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            _mark(item, (*at, i), lines, name)


def _dotted(location: Iterable[str | int]) -> str:
    out = ""
    for part in location:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else str(part)
    return out


def _explain(
    error: Any, model: type[BaseModel], data: Any, name: str,
    lines: dict[Location, int], prefix: Location,
) -> str:  # fmt: skip
    # pydantic puts tags of unions into the location; keep only what is in the file.
    at, parent = _in_file(error["loc"], data, lines, prefix)
    full = (*prefix, *at)
    line = next((lines[full[:n]] for n in range(len(full), -1, -1) if full[:n] in lines), 1)
    kind, given, context = error["type"], error.get("input"), error.get("ctx", {})
    owners = _models_at(model, at[:-1], parent) if at else [model]
    fix = ""
    if kind == "extra_forbidden":
        message, fix = "unknown key", _nearest(str(at[-1]), _keys(owners))
    elif kind == "missing":
        message, fix = "is missing", _describe(owners, str(at[-1]))
    elif kind in ("literal_error", "enum"):
        options = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        message, fix = f"{given!r} is not one of its values", _nearest(str(given), options)
    elif kind == "value_error":
        message = str(context.get("error", error["msg"]))
    else:
        shown = "its value" if "secrets" in at else repr(given)  # it may be the secret itself
        message = f"{shown}: {error['msg'][:1].lower()}{error['msg'][1:]}"
    where = f"{name}:{line}: {_dotted(at)}: " if at else f"{name}:{line}: "
    return f"{where}{message}" + (f"\n  {fix}" if fix else "")


def _in_file(
    loc: Location, data: Any, lines: dict[Location, int], prefix: Location
) -> tuple[Location, Any]:
    at: list[str | int] = []
    parent, here = None, data
    for i, part in enumerate(loc):
        if _holds(here, part):
            parent, here = here, here[part]
            at.append(part)
        elif i == len(loc) - 1 and isinstance(here, dict):
            at.append(part)  # a missing key is not in the file, but is what to name
    return tuple(at), parent


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    origin = get_origin(annotation)
    if origin is None:
        return []
    args = get_args(annotation)
    if origin in (Union, types.UnionType):
        return [m for a in args for m in _models_in(a)]
    return [m for a in args for m in _models_in(a)]


def _models_at(model: type[BaseModel], path: Location, parent: Any) -> list[type[BaseModel]]:
    """The models that may stand at `path`: of a union, those that share the most keys with what is there."""
    here: list[type[BaseModel]] = [model]
    for part in path:
        fields = [f for m in here for n, f in m.model_fields.items() if part in (n, f.alias)]
        # a key of a dict or an index of a list: the models stay those of the container's items
        if fields:
            here = [m for f in fields for m in _models_in(f.annotation)]
    given = set(parent) if isinstance(parent, dict) else set()
    shared = [len(given & set(_keys([m]))) for m in here]
    return [m for m, n in zip(here, shared, strict=True) if n == max(shared)]


def _keys(models: list[type[BaseModel]]) -> list[str]:
    return list(dict.fromkeys(f.alias or n for m in models for n, f in m.model_fields.items()))


def _nearest(given: str, options: list[str]) -> str:
    close = difflib.get_close_matches(given, options, n=1, cutoff=0.5)
    listed = ", ".join(options)
    return f"did you mean {close[0]!r}?  ({listed})" if close else f"one of: {listed}"


def _describe(models: list[type[BaseModel]], key: str) -> str:
    for name, field in (item for m in models for item in m.model_fields.items()):
        if key in (name, field.alias) and (field.description or field.examples):
            example = f", such as {field.examples[0]}" if field.examples else ""
            return f"{field.description or 'write a value'}{example}"
    return ""
