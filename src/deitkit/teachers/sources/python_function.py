"""python:MODULE:FUNCTION: any callable from a batch of views to logits."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from timm.data import ImageNetInfo
from torch import Tensor, nn

from ...errors import WeightsError, did_you_mean
from ...preprocessing import InputSize, Preprocessing
from ..pretrained import Pretrained, count_params

SYNTAX = "python:MODULE:FUNCTION"
ABOUT = "a callable from views (B, 3, H, W) in [0, 1] to logits (B, K); its `classes` name them"
PACKAGE = "deitkit"

_NATIVE = 224  # for whole images, where no student's view decides


class Call:
    """The callable as a backend."""

    name = "python"

    def __init__(self, function: Callable[[Tensor], Tensor], rest: str):
        self.function, self.rest = function, rest

    def __call__(self, views: Tensor) -> tuple[Tensor, ...]:
        try:
            with torch.no_grad():
                logits = self.function(views)
        except Exception as error:
            raise WeightsError(
                f"python:{self.rest} fails on views {tuple(views.shape)}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(views):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise WeightsError(
                f"python:{self.rest} gives {found} for {len(views)} views; give logits "
                f"({len(views)}, K), a number a class"
            )
        return (logits.float(),)


def check(rest: str) -> None:
    """Raises DeitkitError where the module or the callable in it is not there."""
    _find(rest)


def open_model(rest: str, wanted: InputSize) -> Pretrained:
    """The callable; it sees the student's views at their own size, unless teacher.image_size is set."""
    function = _find(rest)
    if isinstance(function, nn.Module):
        function.eval().requires_grad_(False)
    size = wanted.student or (_NATIVE, _NATIVE)
    if wanted.configured is not None:
        size = (wanted.configured, wanted.configured)
    count = Call(function, rest)(torch.zeros(2, 3, *size))[0].shape[1]
    names = getattr(function, "classes", None)
    if names is not None and len(names) != count:
        raise WeightsError(f"python:{rest} names {len(names)} classes and answers {count}")
    if names is None and count == 1000:
        names = ImageNetInfo().label_names()
    return Pretrained(
        name=rest,
        preprocessing=Preprocessing(size, (0.0,) * 3, (1.0,) * 3, 1.0),
        body=None,
        head=nn.Identity(),
        outputs=tuple(names) if names is not None else None,
        params=count_params(function if isinstance(function, nn.Module) else None),
        backends={"python": lambda view: Call(function, rest)},
    )


def _find(rest: str) -> Any:
    module_name, _, name = rest.partition(":")
    if not module_name or not name:
        raise WeightsError(f"python:{rest} names no function; give {SYNTAX}")
    if os.getcwd() not in sys.path:  # a file beside the user's data
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise WeightsError(
            f"python:{rest}: there is no module {error.name!r}; start from the folder that holds it"
        ) from None
    except Exception as error:
        raise WeightsError(
            f"python:{rest}: {module_name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not callable(getattr(module, name, None)):
        callables = [n for n in vars(module) if callable(getattr(module, n))]
        also = did_you_mean(name, callables)
        raise WeightsError(f"python:{rest}: {module_name} has no function {name!r}{also}")
    return getattr(module, name)
