"""A finished run put to use: images in, classes out, with the run's own preprocessing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .data.decode import Extent, UnreadableImage, center_crop, open_for_view, to_rgb
from .errors import SettingError
from .inference.backends import CONVERTED, Backend, BackendName
from .inference.device import resolve_inference_device
from .inference.joint_classifier import JointClassifier, as_output
from .inference.selection import create_backend
from .models.deit import DeiT, DeiTOutput
from .models.token_merging import TokenMerging
from .run_folder import read_run
from .tasks import THRESHOLD, Task

ImageInput = str | Path | Image.Image | NDArray[np.uint8]


@dataclass(frozen=True)
class Prediction:
    """What a run says of one image: the joint classifier's most likely class, and both heads' own.

    A teacher has one head, whose class stands in `label` and `class_label`.

    labels: of several labels an image all that are more probable than 0.5, most likely first; else `label`.
    """

    source: str
    label: str
    probability: float
    labels: tuple[str, ...]
    class_label: str
    distill_label: str | None
    probabilities: dict[str, float]  # of every class, most likely first

    def top(self, k: int | None = None) -> list[tuple[str, float]]:
        """The k most likely classes; None for `labels`."""
        return list(self.probabilities.items())[: len(self.labels) if k is None else k]


@dataclass(frozen=True)
class ImageClassifier:
    """An backend that classifies images, with the classes and the preprocessing that it was measured with.

    task: whether an image has one class or several labels. image_size: (height, width) of a view; crop: the
    share of a image's shorter side that it keeps. backend: views (B, 3, H, W) in [0, 1] -> probabilities,
    and each head's logits, each (B, K).
    """

    classes: tuple[str, ...]
    task: Task
    image_size: tuple[int, int]
    crop: float
    device: torch.device
    backend: Backend

    def pixels(self, picture: ImageInput) -> NDArray[np.uint8]:
        """One image as (3, H, W) uint8, the way the run's validation saw its images."""
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture)
        if isinstance(picture, Image.Image):
            image = to_rgb(picture)
            extent: Extent = image.size
        else:
            image, extent = open_for_view(Path(picture), self.image_size, self.crop)
        return center_crop(image, self.image_size, self.crop, extent)

    def forward(self, pixels: Tensor) -> DeiTOutput:
        """(B, 3, H, W) uint8 -> both heads' logits."""
        return as_output(self._answer(pixels))

    def _answer(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return self.backend(pixels.to(self.device).float() / 255.0)

    def predict(self, pictures: Sequence[ImageInput], batch_size: int = 32) -> list[Prediction]:
        """Classifies paths, PIL images and (H, W, 3) uint8 arrays, of any size and mixed at will.

        Raises UnreadableImage for a file that holds no image; `predict_all` goes on past it.
        """
        if isinstance(pictures, str | Path):
            raise SettingError(f"predict takes a list of images; give [{str(pictures)!r}]")
        found = []
        for answer in self.predict_all(pictures, batch_size):
            if isinstance(answer, UnreadableImage):
                raise answer
            found.append(answer)
        return found

    def predict_all(
        self, pictures: Sequence[ImageInput], batch_size: int = 32
    ) -> Iterator[Prediction | UnreadableImage]:
        """One answer a image, in order: a prediction, or why there is none."""
        for first in range(0, len(pictures), batch_size):
            answers: list[NDArray[np.uint8] | UnreadableImage] = []
            chunk = pictures[first : first + batch_size]
            for picture in chunk:
                try:
                    answers.append(self.pixels(picture))
                except UnreadableImage as error:
                    answers.append(error)
            readable = [a for a in answers if isinstance(a, np.ndarray)]
            sources = [
                str(picture) if isinstance(picture, str | Path) else "image"
                for picture, answer in zip(chunk, answers, strict=True)
                if isinstance(answer, np.ndarray)
            ]
            predictions = iter(self._predict_pixels(sources, readable) if readable else [])
            yield from (a if isinstance(a, UnreadableImage) else next(predictions) for a in answers)

    def _predict_pixels(self, sources: list[str], pixels: list[NDArray[np.uint8]]) -> list[Prediction]:
        answer = self._answer(torch.from_numpy(np.stack(pixels)))
        joint, output = answer[0].cpu(), as_output(answer)
        by_class = output.class_logits.argmax(1).tolist()
        by_distill = output.distill_logits.argmax(1).tolist() if output.distill_logits is not None else None
        predictions = []
        for i, (source, row) in enumerate(zip(sources, joint, strict=True)):
            order = row.argsort(descending=True).tolist()
            predictions.append(
                Prediction(
                    source=source,
                    label=self.classes[order[0]],
                    probability=float(row[order[0]]),
                    labels=tuple(self.classes[k] for k in order[: self._held(row)]),
                    class_label=self.classes[by_class[i]],
                    distill_label=self.classes[by_distill[i]] if by_distill else None,
                    probabilities={self.classes[k]: float(row[k]) for k in order},
                )
            )
        return predictions

    def _held(self, probabilities: Tensor) -> int:
        """How many of the (K,) probabilities hold."""
        return 1 if self.task == "multiclass" else int((probabilities > THRESHOLD).sum())


@dataclass(frozen=True)
class Classifier(ImageClassifier):
    """A trained student put to use.

    graph is what `backend` runs, with token merging if that was asked for; `model` never merges.
    mean, std: of the model's normalisation, (1, 3, 1, 1).
    """

    model: DeiT
    mean: Tensor
    std: Tensor
    graph: JointClassifier

    def normalise(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 -> the model's input, on its device."""
        views = pixels.to(self.device).float() / 255.0
        return (views - self.mean) / self.std


def load(
    run: str | Path, device: str = "auto", *, backend: BackendName = "auto", merge: int = 0
) -> Classifier:
    """The classifier of a finished run folder.

    backend: "pytorch", "compiled", "onnxruntime" or "openvino"; "auto" starts with PyTorch and, on a
    CPU, changes to a faster backend that agrees when there is much to classify. merge: patch tokens to
    merge away in each block (arXiv 2210.09461), faster and a little less accurate; 0: none.

    Raises DeitkitError where the folder is not whole, or a device or backend is unknown or not there.
    """
    run = Path(run)
    model, saved = read_run(run)
    if backend in CONVERTED:
        if device not in ("auto", "cpu"):
            raise SettingError(f"{backend} runs on the CPU only; use device cpu or auto, or another backend")
        device = "cpu"
    where = resolve_inference_device(device)
    view, task = saved["preprocessing"], saved.get("task", "multiclass")
    mean, std = (torch.tensor(view[k], device=where).view(1, 3, 1, 1) for k in ("mean", "std"))
    model = model.to(where).eval()
    network = TokenMerging(model, merge) if merge else model
    graph = JointClassifier(network, view["mean"], view["std"], task=task)
    return Classifier(
        classes=tuple(saved["classes"]),
        task=task,
        image_size=model.image_size,
        crop=view["crop"],
        device=where,
        backend=create_backend(graph, model.image_size, backend, where),
        model=model,
        mean=mean,
        std=std,
        graph=graph,
    )
