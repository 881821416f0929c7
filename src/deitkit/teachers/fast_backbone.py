"""Runs a frozen teacher fast: a frozen model is a pure inference graph.

An backend takes images (B, 3, H, W) in [0, 1] at the teacher's own size and gives pooled features (B, F) and
the maps. The backends are those of `inference`; which one is chosen is measured, once, before training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from .. import log
from ..errors import DeitkitError, WeightsError
from ..inference.backends import (
    CONVERTED,
    Engine,
    OnnxRuntimeEngine,
    OpenVINOEngine,
    PyTorchEngine,
    installed,
    to_openvino,
)
from ..inference.device import fast_precision
from ..inference.onnx_graph import to_onnx
from ..inference.selection import race
from ..preprocessing import Normalised, Preprocessing
from .pretrained import Pretrained

Makers = Mapping[str, Callable[[], Engine]]

_BATCH = 8  # of the measurement
# So much faster PyTorch must be than a backend made for inference: where they are close, chance must not
# decide, since other roundings make two runs of one seed differ.
_CLEARLY = 1.5
_TOLERANCE = 1e-2  # largest difference between backends, relative to the largest value


def engines_of(model: Pretrained, view: Preprocessing, device: torch.device) -> Makers:
    """Makers of the backends that can run `model`, the reference first."""
    if model.engines is not None:
        return {name: partial(make, view) for name, make in model.engines.items()}
    assert model.body is not None
    network, size = Normalised(model.body, view.mean, view.std), view.image_size
    pytorch = partial(PyTorchEngine, network, device, precision=fast_precision(device), channels_last=True)

    def onnxruntime() -> Engine:
        outputs = len(pytorch()(torch.zeros(2, 3, *size)))
        names = ["features", "map8", "map16"][:outputs]
        return OnnxRuntimeEngine(to_onnx(network, size, names).SerializeToString())

    return {
        "pytorch": pytorch,
        "compiled": partial(pytorch, compiled=True),
        "openvino": lambda: OpenVINOEngine(to_openvino(network, size)),
        "onnxruntime": onnxruntime,
    }


def choose_engine(makers: Makers, view: Preprocessing, device: torch.device, wanted: str) -> Engine:
    """The wanted backend; on a CPU `auto` takes one made for inference that agrees with the first of
    `makers`, unless that is clearly faster.

    Compiling takes long, so PyTorch's compiler has to be asked for. Raises DeitkitError where the wanted
    one is not installed, cannot run this teacher, or answers otherwise than the first.
    """
    reference, *_ = makers
    images = torch.rand(_BATCH, 3, *view.image_size, generator=torch.Generator().manual_seed(0))
    if wanted == "auto":
        first = makers[reference]()
        if device.type != "cpu":
            return first
        return _fastest(first, [n for n in CONVERTED if n in makers and n != reference], makers, images)
    if wanted not in makers:
        if wanted == "pytorch":  # whoever asks for PyTorch asks for no conversion
            return makers[reference]()
        raise WeightsError(f"this teacher cannot run with {wanted}; choose one of auto, {', '.join(makers)}")
    if not installed(wanted):
        raise WeightsError(f"teacher.backend {wanted} is not installed; leave it out, or install {wanted}")
    if wanted == reference:
        return makers[reference]()
    expected = makers[reference]()(images)
    try:
        engine = makers[wanted]()
        answer = engine(images)
    except DeitkitError:
        raise
    except Exception as error:  # a converter or compiler fails in ways of its own
        raise WeightsError(
            f"the teacher cannot be run with {wanted} ({type(error).__name__}); use teacher.backend auto"
        ) from error
    if not _agree(expected, answer):
        raise WeightsError(f"{wanted} answers otherwise than {reference}; use teacher.backend auto")
    return engine


def _fastest(first: Engine, names: list[str], makers: Makers, images: Tensor) -> Engine:
    """The first of `names` that is installed and agrees, unless `first` is clearly faster; says so."""
    expected = first(images)
    for name in filter(installed, names):
        try:
            other = makers[name]()
            agrees = _agree(expected, other(images))
        except Exception as error:  # a converter fails in ways of its own, and there is another backend
            log.info(f"the teacher does not run with {name} ({type(error).__name__})")
            continue
        if not agrees:
            log.info(f"{name} answers otherwise than {first.name}, so it is not used")
            continue
        speeds = {name: _BATCH / seconds for name, seconds in race((first, other), images).items()}
        log.info("teacher's backend: " + ", ".join(f"{n} {v:.0f} images/s" for n, v in speeds.items()))
        return first if speeds[first.name] > _CLEARLY * speeds[name] else other
    return first


def _agree(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return len(a) == len(b) and all(
        torch.allclose(x.cpu(), y.cpu(), rtol=_TOLERANCE, atol=_TOLERANCE * float(x.abs().max()))
        for x, y in zip(a, b, strict=True)
    )
