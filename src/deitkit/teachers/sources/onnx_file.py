"""onnx:PATH: a classifier in an ONNX file, with one input of images and one output a class."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo
from torch import Tensor

from ...errors import WeightsError
from ...inference.backends import Backend, OnnxRuntimeBackend, OpenVINOBackend, installed
from ...preprocessing import InputSize, Preprocessing
from ..pretrained import Pretrained

SYNTAX = "onnx:PATH"
ABOUT = "a classifier in an ONNX file: one input (B, 3, H, W), logits or probabilities out"
PACKAGE = "onnxruntime"

_NATIVE = 224  # where the file leaves the size open


class OnnxFile:
    """Runs the file on images in [0, 1]: normalised here, probabilities turned into logits."""

    def __init__(self, backend: Backend, view: Preprocessing, place: int, probabilities: bool):
        self.backend, self.place, self.probabilities = backend, place, probabilities
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) for v in (view.mean, view.std))

    @property
    def name(self) -> str:
        return self.backend.name

    def __call__(self, views: Tensor) -> tuple[Tensor, ...]:
        out = self.backend((views - self.mean) / self.std)[self.place].float()
        return (out.clamp(min=1e-12).log() if self.probabilities else out,)


def check(rest: str) -> None:
    """Raises DeitkitError where there is no such file, or nothing to run it with."""
    if not Path(rest).is_file():
        raise WeightsError(f"there is no ONNX file {rest}; give the path of one")
    if not installed("onnxruntime"):
        raise WeightsError('onnx: teachers need onnxruntime; install it with: pip install "deitkit[onnx]"')


def open_model(rest: str, wanted: InputSize) -> Pretrained:
    """The file's network; a teacher's own mean and deviation come from teacher.mean and teacher.std.

    Raises DeitkitError for a file that cannot be read, or whose input is not a batch of images.
    """
    check(rest)
    try:
        runtime = OnnxRuntimeBackend(Path(rest))
    except Exception as error:  # a runtime's own
        raise WeightsError(f"the ONNX file {rest} cannot be read ({type(error).__name__})") from None
    view, names = _describe(rest, runtime.session, wanted)
    place, classes, probabilities = _find_answer(rest, runtime, view)
    if names is not None and len(names) != classes:
        raise WeightsError(f"the ONNX file {rest} names {len(names)} classes and answers {classes}")
    if names is None and classes == 1000:
        names = tuple(ImageNetInfo().label_names())
    makers: dict[str, Callable[[Preprocessing], Backend]] = {
        "onnxruntime": lambda view: OnnxFile(runtime, view, place, probabilities),
        "openvino": lambda view: OnnxFile(OpenVINOBackend(Path(rest)), view, place, probabilities),
    }
    return Pretrained(
        name=Path(rest).name,
        preprocessing=view,
        body=None,
        head=torch.nn.Identity(),
        outputs=names,
        params=_count_weights(rest),
        backends=makers,
    )


def _describe(rest: str, session: Any, wanted: InputSize) -> tuple[Preprocessing, tuple[str, ...] | None]:
    """How images go in, and what the outputs are called where the file says so."""
    inputs = session.get_inputs()
    shape = inputs[0].shape
    takes = "an ONNX teacher takes one input of floats (B, 3, H, W)"
    if len(inputs) != 1 or len(shape) != 4 or inputs[0].type != "tensor(float)":
        found = ", ".join(f"{i.name} {i.type} {list(i.shape)}" for i in inputs)
        raise WeightsError(f"the ONNX file {rest} takes {found}; {takes}")
    if isinstance(shape[1], int) and shape[1] != 3:
        last = ", channels last" if shape[3] == 3 else ""
        raise WeightsError(f"the ONNX file {rest} takes {list(shape)}{last}; {takes}")
    if isinstance(shape[0], int):
        raise WeightsError(
            f"the ONNX file {rest} takes exactly {shape[0]} images at a time; export it with a free batch"
        )
    size = wanted.resolve(_NATIVE)
    if isinstance(shape[2], int) and isinstance(shape[3], int):
        if wanted.configured not in (None, shape[2]):
            raise WeightsError(
                f"the ONNX file {rest} takes {shape[2]} x {shape[3]} pixels only; "
                "leave out teacher.image_size"
            )
        size = (shape[2], shape[3])
    says = session.get_modelmeta().custom_metadata_map
    if "classes" in says and "preprocessing" in says:  # deitkit export: the normalisation is inside
        if json.loads(says.get("task", '"multiclass"')) != "multiclass":
            raise WeightsError(f"the ONNX file {rest} knows several labels an image; give its run as run:RUN")
        crop = json.loads(says["preprocessing"])["crop"]
        return Preprocessing(size, (0.0,) * 3, (1.0,) * 3, crop), tuple(json.loads(says["classes"]))
    return Preprocessing(size), None


def _find_answer(rest: str, backend: Backend, view: Preprocessing) -> tuple[int, int, bool]:
    """The place of the output with a number a class, how many classes, and whether it is probabilities."""
    images = torch.rand(2, 3, *view.image_size, generator=torch.Generator().manual_seed(0))
    try:
        outputs = backend(images)
    except Exception as error:
        raise WeightsError(f"the ONNX file {rest} fails on a batch of images: {error}") from None
    flat = [i for i, out in enumerate(outputs) if out.ndim == 2 and len(out) == 2]
    if not flat:
        shapes = ", ".join(str(tuple(out.shape)) for out in outputs)
        raise WeightsError(f"the ONNX file {rest} gives {shapes}; a teacher gives one number a class, (B, K)")
    answer = outputs[flat[0]]
    sums = answer.sum(1)
    likely = bool((answer >= 0).all()) and bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-3))
    return flat[0], answer.shape[1], likely


def _count_weights(rest: str) -> int:
    """Numbers in the file's initialisers; 0 where the package onnx is not there to tell."""
    try:
        import onnx
    except ImportError:
        return 0
    model = onnx.load(rest, load_external_data=False)
    return sum(math.prod(weight.dims) for weight in model.graph.initializer)
