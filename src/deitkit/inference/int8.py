"""An ONNX model in int8, calibrated on images; ONNX Runtime and OpenVINO both run it."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import DataError
from .onnx_graph import require_onnx

_IN_FLOAT = "class_means"  # eight bits are too coarse for cosines near 1


def quantise(model: Any, inputs: Iterable[Tensor]) -> Any:
    """A static int8 copy of an onnx.ModelProto (QDQ form), calibrated on inputs of its only input.

    Matrix products with weights become int8: weights per channel, activations per tensor, between the
    smallest and the largest value on the inputs. Attention's own products, softmax, norms and the cosines
    with class means stay float.
    Raises DataError without inputs, DependencyError if a package is missing.
    """
    require_onnx()
    import onnx
    from onnxruntime.quantization import QuantType, quantize_static

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # the quantiser logs advice to the root logger
    try:
        with tempfile.TemporaryDirectory() as folder:
            plain, quantised = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
            onnx.save(model, plain)
            # Without ONNX Runtime's preparation: the exporter has folded the constants already, and
            # symbolic shape inference fails on merged tokens.
            quantize_static(
                plain,
                quantised,
                _reader(model.graph.input[0].name, inputs),
                op_types_to_quantize=["MatMul", "Gemm"],
                nodes_to_exclude=[node.name for node in model.graph.node if _IN_FLOAT in node.input],
                per_channel=True,
                # 7-bit weights: CPUs without VNNI add products in 16 bits, which would saturate.
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )
            result = onnx.load(quantised)
    finally:
        root.setLevel(level)
    for entry in model.metadata_props:
        if entry.key not in {e.key for e in result.metadata_props}:
            result.metadata_props.add(key=entry.key, value=entry.value)
    return result


def _reader(name: str, inputs: Iterable[Tensor]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(inputs)
            self.count = 0

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            if batch is None:
                if self.count == 0:
                    raise DataError("there are no images to calibrate int8 on; give --data with some")
                return None
            self.count += len(batch)
            return {name: np.ascontiguousarray(batch.numpy())}

    return Reader()
