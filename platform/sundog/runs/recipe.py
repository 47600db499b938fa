"""What a user writes to train a model, and how it is found from its name.

Owns the protocol and its error messages; the loop, the order of samples and the randomness are the
loop's, which is what lets a run be exact without rewriting anyone's recipe.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sundog.errors import RecipeError, SundogError

if TYPE_CHECKING:
    import numpy as np
    import torch

METHODS = ("model", "dataset", "loss", "metrics", "optimizer", "example_inputs")
_OPTIONAL = ("metrics", "outputs")


class Recipe:
    """Subclass it, or write any class with the same methods.

    Built as `Recipe(data=Dataset | None, **params)`, on the driver and on every worker alike.
    """

    def __init__(self, data: Any = None, **params: Any) -> None:
        self.data = data
        self.params = params

    def model(self) -> torch.nn.Module:
        """A fresh model. Its random initial values are the same on every worker."""
        raise NotImplementedError

    def dataset(self, split: str) -> Any:
        """The rows of a split ('train', 'val', 'test'): `len(ds)` and `ds[i] -> {name: tensor}`.

        A `Columns` is the fast way. A missing split raises KeyError or returns None.
        """
        raise NotImplementedError

    def loss(self, model: torch.nn.Module, batch: Any, rng: torch.Generator) -> torch.Tensor:
        """The mean loss of a batch: a scalar. Randomness comes from torch's own generator, which is
        keyed by step and micro-batch, or from `rng`."""
        raise NotImplementedError

    def metrics(self, outputs: Any, batch: Any) -> dict[str, float]:
        """Means over the batch, such as accuracy, given what the model answered."""
        return {}

    def optimizer(self, params: Iterator[torch.nn.Parameter]) -> torch.optim.Optimizer:
        raise NotImplementedError

    def example_inputs(self) -> dict[str, torch.Tensor]:
        """Arguments of `model.forward` by name, with a batch dimension first."""
        raise NotImplementedError

    def outputs(self, model: torch.nn.Module, batch: Any) -> Any:
        """What the model answers for a batch: `forward` of the columns that `example_inputs` names."""
        return forward(self, model, batch)


class Columns:
    """Rows as named tensors of one length: a data set that is read by whole batches."""

    def __init__(self, **columns: torch.Tensor) -> None:
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"columns differ in length: {lengths}")
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: column[index] for name, column in self.columns.items()}

    def batch(self, indices: np.ndarray[Any, Any]) -> dict[str, torch.Tensor]:
        return {name: column[indices] for name, column in self.columns.items()}


def fetch(dataset: Any, indices: np.ndarray[Any, Any]) -> Any:
    """The rows at `indices` as one batch."""
    if hasattr(dataset, "batch"):
        return dataset.batch(indices)
    from torch.utils.data import default_collate

    if hasattr(dataset, "__getitems__"):
        return default_collate(dataset.__getitems__(indices.tolist()))
    return default_collate([dataset[int(i)] for i in indices])


def forward(recipe: Any, model: Any, batch: Any) -> Any:
    """`model(**inputs)`, the inputs being the batch's columns that `example_inputs` names."""
    if not isinstance(batch, Mapping):
        raise RecipeError(
            f"a batch is a {type(batch).__name__}, so its model inputs have no names",
            "let dataset(split)[i] return a dict, or define outputs(model, batch) on the recipe",
        )
    names = list(recipe.example_inputs())
    missing = [name for name in names if name not in batch]
    if missing:
        raise RecipeError(
            f"example_inputs() names {missing}, a batch has {sorted(batch)}",
            "call the data set's columns what forward() calls its arguments",
        )
    return model(**{name: batch[name] for name in names})


def resolve(name: str, directory: str | Path | None = None) -> Callable[..., Any]:
    """The recipe that `module:Name` means, the module imported from `directory` (else here).

    RecipeError when the module or the name is missing, or the module raises while it is imported.
    """
    folder = str(Path(directory or Path.cwd()).resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise RecipeError(
                f"recipe {name}: no module {error.name!r} in {folder}", _nearby(module_name, folder)
            ) from None
        raise RecipeError(
            f"recipe {name}: {module_name} imports {error.name!r}, which is not installed",
            f"add it to the spec: requirements: [{error.name}]",
        ) from None
    except Exception as error:  # noqa: BLE001 - the user's module may raise anything
        raise RecipeError(f"recipe {name}: importing it failed: {blame(error)}") from None
    try:
        found = getattr(module, attribute)
    except AttributeError:
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        close = get_close_matches(attribute, known, n=1, cutoff=0.4)
        hint = f"did you mean {module_name}:{close[0]}?" if close else f"it has {', '.join(known)}"
        raise RecipeError(f"recipe {name}: {module_name} has no {attribute!r}", hint) from None
    if not callable(found):
        raise RecipeError(
            f"recipe {name} is a {type(found).__name__}, not a class or a function that builds one"
        )
    return found


def build(name: str, data: Any, params: Mapping[str, Any], directory: Any = None) -> Any:
    """The recipe, built. RecipeError when it lacks methods or its constructor raises."""
    factory = resolve(name, directory)
    with blamed(f"recipe {name}: building it with params {sorted(params)}"):
        recipe = factory(data=data, **params)
    missing = [
        method
        for method in METHODS
        if method not in _OPTIONAL
        and (
            not callable(getattr(recipe, method, None))
            or getattr(type(recipe), method, None) is getattr(Recipe, method)
        )
    ]
    if missing:
        raise RecipeError(
            f"recipe {name} lacks {', '.join(f'{m}()' for m in missing)}",
            f"a recipe has {', '.join(f'{m}()' for m in METHODS)}",
        )
    return recipe


@contextmanager
def blamed(what: str) -> Iterator[None]:
    """Turns whatever user code raises inside into one RecipeError that names the user's line."""
    try:
        yield
    except SundogError:
        raise
    except Exception as error:
        raise RecipeError(f"{what} raised {blame(error)}") from error


def blame(error: BaseException) -> str:
    """`ValueError: why (file.py:12, in loss)`: the deepest line that is neither ours nor a library's."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).parent.parent)
    own = [
        f for f in frames
        if not f.filename.startswith(ours) and "site-packages" not in f.filename
        and "importlib" not in f.filename and not f.filename.startswith("<frozen")
        and f"{sys.base_prefix}/lib" not in f.filename
    ]  # fmt: skip
    where = f" ({Path(own[-1].filename).name}:{own[-1].lineno}, in {own[-1].name})" if own else ""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}{where}"


def _nearby(module_name: str, folder: str) -> str:
    path = Path(folder, *module_name.split(".")).with_suffix(".py")
    near = get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
    if near:
        return f"did you mean {'.'.join([*module_name.split('.')[:-1], near[0][:-3]])}?"
    return f"looked for {path}; is the recipe in the working directory that was submitted?"
