"""The servers behind `/v1`, as `SUNDOG_UPSTREAMS` names them."""

from __future__ import annotations

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from sundog.errors import SpecError

_EXAMPLE = 'SUNDOG_UPSTREAMS={"chat": {"url": "http://127.0.0.1:8000/v1"}}'


class Upstream(BaseModel):
    """An OpenAI-compatible server. `url` ends in `/v1`; `key_env` names the variable with its key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    model: str | None = None
    """its own name for the model, where that is not the service's"""
    key_env: str | None = None


def upstreams_of(text: str) -> dict[str, Upstream]:
    """`SUNDOG_UPSTREAMS`: `{"service": {"url": …}}`. Raises SpecError, which repeats no value: one may
    be a key, or have one in it."""
    if not text.strip():
        return {}
    found = {}
    try:
        for name, each in dict(orjson.loads(text)).items():
            found[name] = Upstream.model_validate(each)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, (name, *first["loc"])))
        raise _wrong(f"{where}: {first['msg']}") from None
    except orjson.JSONDecodeError as error:
        raise _wrong(str(error)) from None
    except (TypeError, ValueError):
        raise _wrong("it is no object") from None
    for name, each in found.items():
        if not each.url.startswith(("http://", "https://")):
            raise _wrong(f"{name}.url: begin it with http:// or https://")
    return found


def _wrong(why: str) -> SpecError:
    return SpecError(f"SUNDOG_UPSTREAMS is not understood: {why}", f"write {_EXAMPLE}")
