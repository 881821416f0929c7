"""A frozen network as an ONNX model."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import DependencyError
from .exported_program import example_input

_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_OPSET = 18
_SMALL = 1024  # weights, of which half precision would save nothing worth it


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
    view_size: tuple[int, int] | None,
    output_names: Sequence[str] | None,
    metadata: Mapping[str, str] | None = None,
    *,
    batch: int | None = None,
) -> Any:
    """An onnx.ModelProto of `network`; the input is `views`, or `image` if view_size is None.

    view_size, batch: see `exported_program.to_program`. output_names: None lets the exporter name them.
    metadata goes into the model's metadata properties. Raises DependencyError if a package is missing.
    """
    require_onnx()
    example, dynamic = example_input(view_size, batch)
    # Plain attention instead of the fused kernel, whose memory layout differs: masked attention could not be
    # exported from it.
    with warnings.catch_warnings(), _silent(), sdpa_kernel(SDPBackend.MATH):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network.cpu().eval(),
            (example,),
            input_names=["image" if view_size is None else "views"],
            output_names=None if output_names is None else list(output_names),
            dynamic_shapes=(dynamic,),
            opset_version=_OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=key, value=value)
    return model


def half_weights(model: Any) -> Any:
    """A copy of an onnx.ModelProto whose large weights are in half precision; it computes in float.

    A file of half the size. ONNX Runtime casts the weights once, when it opens the file: its kernels for CPUs
    are of float.
    """
    import onnx
    from onnx import numpy_helper

    result = onnx.ModelProto()
    result.CopyFrom(model)
    casts = []
    for weight in result.graph.initializer:
        if weight.data_type != onnx.TensorProto.FLOAT or math.prod(weight.dims) < _SMALL:
            continue
        name, half = weight.name, f"{weight.name}_fp16"
        values = numpy_helper.to_array(weight).astype(np.float16)
        weight.CopyFrom(numpy_helper.from_array(values, half))
        casts.append(onnx.helper.make_node("Cast", [half], [name], f"{half}_cast", to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *result.graph.node]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


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
