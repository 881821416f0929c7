"""python:MODULE:FUNCTION: any callable from a batch of views to logits."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import WeightsError, did_you_mean, on_one_line
from ...preprocessing import InputSize, Preprocessing
from ..classes import imagenet_ids
from ..pretrained import Pretrained, TeacherSource, count_params, register

_DEFAULT_SIZE = 224  # for whole images, if no student's image size is known


class FunctionBackend:
    """The callable as a backend; checks what it returns."""

    name = "python"

    def __init__(self, function: Callable[[Tensor], Tensor], spec: str):
        self.function, self.spec = function, spec

    def __call__(self, views: Tensor) -> tuple[Tensor, ...]:
        try:
            with torch.no_grad():
                logits = self.function(views)
        except Exception as error:
            why = f"{type(error).__name__}: {on_one_line(error)}"
            raise WeightsError(f"{self.spec} fails on views {tuple(views.shape)}: {why}") from error
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(views):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise WeightsError(
                f"{self.spec} returns {found} for {len(views)} views; return logits "
                f"({len(views)}, K), one per class"
            )
        return (logits.float(),)


@register
class PythonSource(TeacherSource):
    name = "python"
    syntax = "python:MODULE:FUNCTION"
    about = "a callable from views (B, 3, H, W) in [0, 1] to logits (B, K); its `classes` name them"
    runs_code = True

    def check(self, model: str) -> None:
        _import(model)

    def open(self, model: str, size: InputSize, *, trust_remote_code: bool = False) -> Pretrained:
        """The callable. It gets the student's views at their own size unless teacher.image_size is set."""
        spec, function = f"python:{model}", _import(model)
        if isinstance(function, nn.Module):
            function.eval().requires_grad_(False)
        image_size = size.student or (_DEFAULT_SIZE, _DEFAULT_SIZE)
        if size.configured is not None:
            image_size = (size.configured, size.configured)
        num_outputs = FunctionBackend(function, spec)(torch.zeros(2, 3, *image_size))[0].shape[1]
        return Pretrained(
            name=model,
            preprocessing=Preprocessing(image_size, (0.0,) * 3, (1.0,) * 3, 1.0),
            backbone=None,
            head=nn.Identity(),
            outputs=_outputs(spec, function, num_outputs),
            params=count_params(function if isinstance(function, nn.Module) else None),
            backends={"python": lambda view: FunctionBackend(function, spec)},
        )


def _outputs(spec: str, function: Any, num_outputs: int) -> tuple[str, ...] | None:
    """The callable's `classes`, or ImageNet's ids for a thousand outputs."""
    names = getattr(function, "classes", None)
    if names is None:
        return imagenet_ids(num_outputs)
    if len(names) != num_outputs:
        raise WeightsError(
            f"{spec} names {len(names)} classes and returns {num_outputs} logits; name each of them"
        )
    return tuple(names)


@contextlib.contextmanager
def _current_folder() -> Iterator[None]:
    """Puts the current folder first on the module path, and then last.

    The callable may import what lies beside it later on, but no file there replaces another module.
    """
    folder = os.getcwd()
    if folder in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        sys.path.append(folder)


def _import(model: str) -> Any:
    """Imports the callable; the current folder is searched first, as by `python -m`.

    Only for a spec that the user typed in this call, never for one from a file: see `spec.refuse_code`.
    """
    module_name, _, name = model.partition(":")
    if not module_name or not name:
        raise WeightsError(f"python:{model} names no function; give {PythonSource.syntax}")
    try:
        with _current_folder():
            module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"python:{model}: there is no module {error.name!r}; run the command in the folder that holds it"
        ) from None
    except Exception as error:
        raise WeightsError(
            f"python:{model}: {module_name} cannot be imported: {type(error).__name__}: {on_one_line(error)}"
        ) from error
    if not callable(getattr(module, name, None)):
        callables = [n for n in vars(module) if callable(getattr(module, n))]
        hint = did_you_mean(name, callables)
        raise WeightsError(f"python:{model}: {module_name} has no function {name!r}{hint}")
    return getattr(module, name)
