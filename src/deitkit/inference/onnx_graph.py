"""A frozen network as an ONNX model."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import DependencyError

_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_OPSET = 18


def missing_for_onnx() -> str | None:
    """The first package that ONNX needs and that is not installed; None if all are."""
    return next((name for name in _NEEDED if importlib.util.find_spec(name) is None), None)


def require_onnx() -> None:
    """Raises DependencyError if a package that ONNX needs is missing."""
    missing = missing_for_onnx()
    if missing is not None:
        raise DependencyError(
            f'{missing} is not installed, and ONNX needs it; install it with: pip install "deitkit[onnx]"'
        )


def to_onnx(
    network: nn.Module,
    view_size: tuple[int, int],
    output_names: Sequence[str] | None,
    metadata: Mapping[str, str] | None = None,
) -> Any:
    """An onnx.ModelProto of `network` for views (B, 3, *view_size) of any B; the input is `views`.

    output_names: None lets the exporter name them. metadata goes into the model's metadata properties.
    Raises DependencyError if a package is missing.
    """
    require_onnx()
    example = torch.zeros(2, 3, *view_size)
    batch = torch.export.Dim("batch", min=1)
    # Plain attention instead of the fused kernel, whose memory layout differs: masked attention could not be
    # exported from it.
    with warnings.catch_warnings(), _silent(), sdpa_kernel(SDPBackend.MATH):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network.cpu().eval(),
            (example,),
            input_names=["views"],
            output_names=None if output_names is None else list(output_names),
            dynamic_shapes=({0: batch},),
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    return model


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Hides the exporter's progress and its advice, which is for its developers."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
