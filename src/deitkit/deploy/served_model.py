"""A model behind the server: images in, answers as JSON out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..classifier import Classifier, StudentClassifier, load_folder
from ..config import BackendName
from ..data.decode import UnreadableImage
from ..errors import DeitkitError
from ..evaluation.explanation import Explanation, explain_views, methods_of
from ..inference.attention_graph import with_attention
from ..inference.backends import Backend
from ..inference.selection import create_backend
from ..models import probabilities_of
from ..tasks import THRESHOLD
from .batching import Batcher, Row
from .model_card import ModelCard, read_card
from .request_images import SentImage
from .web import page_facts


class ServedModel:
    """A classifier with its card, run in batches. output_names: of its backend's outputs."""

    def __init__(
        self, card: ModelCard, classifier: Classifier, backend: Backend, output_names: Sequence[str]
    ):
        self.card, self.classifier, self.backend = card, classifier, backend
        self.output_names = tuple(output_names)
        self.batcher = Batcher(backend, classifier.device)
        self.explainer = ThreadPoolExecutor(1, "explain")  # one request at a time: gradients take memory
        self.methods: tuple[str, ...] = ()
        self.why_unexplained = ""
        try:
            self.methods = methods_of(classifier)
        except DeitkitError as error:
            self.why_unexplained = str(error)
        self.in_use = 0  # requests that it answers

    def close(self) -> None:
        """Answers what was submitted, then ends the model's threads."""
        self.batcher.close()
        self.explainer.shutdown()

    @property
    def name(self) -> str:
        """The name by which requests choose it: that of the run's folder."""
        return self.card.name

    def facts(self) -> dict[str, Any]:
        """What the page is told; see `web.page_facts`."""
        facts = page_facts(self.classifier, self.output_names, self.card, "server")
        return facts | {"explains": list(self.methods)}

    def warm_up(self) -> None:
        """Runs the model once: the first pass takes longer than others."""
        self.backend(torch.zeros(1, 3, *self.classifier.image_size, device=self.classifier.device))

    async def predict(self, images: Sequence[SentImage], decoders: Executor) -> list[Row]:
        """Each image's outputs, in order. Raises UnreadableImage, with the image's name as its path."""
        views = await self._views(images, decoders)
        return await asyncio.gather(*(asyncio.wrap_future(self.batcher.submit(view)) for view in views))

    async def explain(
        self, images: Sequence[SentImage], decoders: Executor, *, label: str | None, method: str | None
    ) -> list[dict[str, Any]]:
        """Each image's explanation as JSON types, in order.

        label: the class; None for the predicted one. method: one of `methods`; None for the first. Raises
        UnreadableImage, with the image's name as its path.
        """
        views = await self._views(images, decoders)
        names, labels = [image.name for image in images], [label] * len(images)
        found = await asyncio.get_running_loop().run_in_executor(
            self.explainer, explain_views, self.classifier, names, views, labels
        )
        return [_explanation(each, method or self.methods[0]) for each in found]

    async def _views(self, images: Sequence[SentImage], decoders: Executor) -> list[NDArray[np.uint8]]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(decoders, self._view, image) for image in images))

    def _view(self, image: SentImage) -> NDArray[np.uint8]:
        try:
            return self.classifier.pixels(image.content)
        except UnreadableImage as error:
            raise UnreadableImage(image.name, error.reason) from None

    def answer(self, name: str, row: Row, *, attention: bool) -> dict[str, Any]:
        """The outputs of the image `name` as JSON types."""
        outputs = dict(zip(self.output_names, row, strict=True))
        joint, logits = outputs["probabilities"], outputs.get("distill_logits")
        order = joint.argsort(descending=True).tolist()
        task, classes = self.classifier.task, self.classifier.classes
        labels = [k for k in order if joint[k] > THRESHOLD] if task == "multilabel" else order[:1]
        unfamiliarity, limit = outputs.get("unfamiliarity"), self.classifier.calibration.familiar_up_to
        familiar = None if unfamiliarity is None or limit is None else float(unfamiliarity) <= limit
        return {
            "name": name,
            "label": classes[order[0]],
            "probability": float(joint[order[0]]),
            "labels": [classes[k] for k in labels],
            "probabilities": self._by_class(joint),
            "class_probabilities": self._of_head(outputs["class_logits"]) if logits is not None else None,
            "distill_probabilities": self._of_head(logits) if logits is not None else None,
            "unfamiliarity": None if unfamiliarity is None else float(unfamiliarity),
            "familiar": familiar,
            "attention": outputs["attention"].tolist() if attention and "attention" in outputs else None,
        }

    def _of_head(self, logits: Tensor) -> dict[str, float]:
        return self._by_class(probabilities_of(logits[None], self.classifier.task)[0])

    def _by_class(self, values: Tensor) -> dict[str, float]:
        return dict(zip(self.classifier.classes, values.tolist(), strict=True))


def _explanation(found: Explanation, method: str) -> dict[str, Any]:
    by_token = dict(zip(found.tokens, found.maps[method].tolist(), strict=True))
    return {
        "name": found.source,
        "label": found.label,
        "probability": found.probability,
        "predicted": found.predicted,
        "method": method,
        "map": found.map(method).tolist(),
        "tokens": by_token if len(by_token) > 1 else None,
    }


def open_model(
    folder: Path, *, device: str = "auto", backend: BackendName = "auto", max_pixels: int
) -> ServedModel:
    """The model in `folder`, one that `classifier.model_folder` names. max_pixels: of an image."""
    classifier = load_folder(folder, device, backend=backend)
    classifier = replace(classifier, max_pixels=min(max_pixels, classifier.max_pixels))
    card = read_card(folder, classifier)
    if not isinstance(classifier, StudentClassifier):
        names: tuple[str, ...] = ("probabilities", "class_logits")
        names += () if classifier.class_means is None else ("unfamiliarity",)
        return ServedModel(card, classifier, classifier.backend, names)
    graph = with_attention(classifier.graph)
    run = create_backend(graph, classifier.image_size, backend, classifier.device)
    return ServedModel(card, classifier, run, graph.output_names)
