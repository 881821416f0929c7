"""onnx:FILE: a classifier in an ONNX file, with one input of images and one output per class."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import WeightsError, on_one_line
from ...inference.backends import Backend, OnnxRuntimeBackend, OpenVINOBackend, installed
from ...preprocessing import InputSize, Preprocessing
from ..classes import imagenet_ids
from ..pretrained import Pretrained, TeacherSource, register

_DEFAULT_SIZE = 224  # if the file takes any size
_TAKES = "an ONNX teacher takes one input of floats (B, 3, H, W)"


class OnnxFileBackend:
    """Runs the file on images in [0, 1]: normalises them, and turns probabilities into logits."""

    def __init__(self, backend: Backend, view: Preprocessing, output: int, probabilities: bool):
        self.backend, self.output, self.probabilities = backend, output, probabilities
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) for v in (view.mean, view.std))

    @property
    def name(self) -> str:
        return self.backend.name

    def __call__(self, views: Tensor) -> tuple[Tensor, ...]:
        out = self.backend((views - self.mean) / self.std)[self.output].float()
        return (out.clamp(min=1e-12).log() if self.probabilities else out,)


@register
class OnnxSource(TeacherSource):
    name = "onnx"
    syntax = "onnx:FILE"
    about = "a classifier in an ONNX file: one input (B, 3, H, W), logits or probabilities out"
    package = "onnxruntime"

    def check(self, model: str) -> None:
        if not Path(model).is_file():
            raise WeightsError(f"there is no ONNX file {model}; give the path of one")
        if not installed("onnxruntime"):
            raise WeightsError(
                'onnx: teachers need onnxruntime; install it with: pip install "deitkit[onnx]"'
            )

    def open(self, model: str, size: InputSize, *, trust_remote_code: bool = False) -> Pretrained:
        """The network in the file. teacher.mean and teacher.std say how it normalises images."""
        self.check(model)
        path = Path(model)
        try:
            runtime = OnnxRuntimeBackend(path)
            image_size = _image_size(model, runtime.session, size)
            view, names = _metadata(model, runtime.session, image_size)
        except WeightsError:
            raise
        except Exception as error:  # of the runtime, which decodes a name when it is asked for
            raise WeightsError(
                f"the ONNX file {model} cannot be read ({type(error).__name__}); export it again"
            ) from None
        output, num_classes, probabilities = _find_logits(model, runtime, view)
        if names is not None and len(names) != num_classes:
            raise WeightsError(
                f"the ONNX file {model} names {len(names)} classes and returns {num_classes} logits; "
                "export it again"
            )
        backends: dict[str, Callable[[Preprocessing], Backend]] = {
            "onnxruntime": lambda view: OnnxFileBackend(runtime, view, output, probabilities),
            "openvino": lambda view: OnnxFileBackend(OpenVINOBackend(path), view, output, probabilities),
        }
        return Pretrained(
            name=path.name,
            preprocessing=view,
            backbone=None,
            head=torch.nn.Identity(),
            outputs=names or imagenet_ids(num_classes),
            params=_count_weights(model),
            backends=backends,
        )

    def absolute(self, model: str) -> str:
        return str(Path(model).resolve())


def _image_size(file: str, session: Any, size: InputSize) -> tuple[int, int]:
    """The input size. Raises WeightsError if the input is not a batch of images."""
    inputs = session.get_inputs()
    shape = inputs[0].shape
    if len(inputs) != 1 or len(shape) != 4 or inputs[0].type != "tensor(float)":
        found = ", ".join(f"{i.name} {i.type} {list(i.shape)}" for i in inputs)
        raise WeightsError(f"the ONNX file {file} takes {found}; {_TAKES}")
    if isinstance(shape[1], int) and shape[1] != 3:
        last = ", channels last" if shape[3] == 3 else ""
        raise WeightsError(f"the ONNX file {file} takes {list(shape)}{last}; {_TAKES}")
    if isinstance(shape[0], int):
        raise WeightsError(
            f"the ONNX file {file} takes exactly {shape[0]} images at a time; export it with a dynamic batch"
        )
    if not (isinstance(shape[2], int) and isinstance(shape[3], int)):
        return size.resolve(_DEFAULT_SIZE)
    if size.configured not in (None, shape[2]):
        raise WeightsError(
            f"the ONNX file {file} takes {shape[2]} x {shape[3]} pixels only; leave out teacher.image_size"
        )
    return shape[2], shape[3]


def _metadata(
    file: str, session: Any, image_size: tuple[int, int]
) -> tuple[Preprocessing, tuple[str, ...] | None]:
    """Preprocessing and class names, which files of `deitkit export` contain. Else ImageNet's, and None."""
    saved = session.get_modelmeta().custom_metadata_map
    if "classes" not in saved or "preprocessing" not in saved:
        return Preprocessing(image_size), None
    try:
        task = json.loads(saved.get("task", '"multiclass"'))
        crop = float(json.loads(saved["preprocessing"])["crop"])
        names = tuple(str(name) for name in json.loads(saved["classes"]))
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"the metadata of the ONNX file {file} cannot be read ({type(error).__name__}); export it again"
        ) from None
    if task not in ("multiclass", "classes"):  # "classes": version 0.1
        raise WeightsError(f"the ONNX file {file} is a multi-label classifier; give its run as run:RUN")
    return Preprocessing(image_size, (0.0,) * 3, (1.0,) * 3, crop), names  # it normalises by itself


def _find_logits(file: str, backend: Backend, view: Preprocessing) -> tuple[int, int, bool]:
    """The index of the output (B, K), K, and whether it holds probabilities."""
    images = torch.rand(2, 3, *view.image_size, generator=torch.Generator().manual_seed(0))
    try:
        outputs = backend(images)
    except Exception as error:
        raise WeightsError(f"the ONNX file {file} fails on a batch of images: {on_one_line(error)}") from None
    flat = [i for i, out in enumerate(outputs) if out.ndim == 2 and len(out) == 2]
    if not flat:
        shapes = ", ".join(str(tuple(out.shape)) for out in outputs)
        raise WeightsError(
            f"the ONNX file {file} returns {shapes}; a teacher returns one logit per class (B, K)"
        )
    found = outputs[flat[0]]
    sums = found.sum(1)
    probabilities = bool((found >= 0).all()) and bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-3))
    return flat[0], found.shape[1], probabilities


def _count_weights(file: str) -> int:
    """The number of weights in the file; 0 if the package onnx, which counts them, is not installed."""
    try:
        import onnx
    except ImportError:
        return 0
    model = onnx.load(file, load_external_data=False)
    return sum(math.prod(weight.dims) for weight in model.graph.initializer)
