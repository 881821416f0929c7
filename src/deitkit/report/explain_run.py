"""`deitkit explain`: why a run predicts what it predicts, as overlays and arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from .. import log
from ..classifier import Classifier, ModelChoice, load_folder, model_folder
from ..data.decode import UnreadableImage, seen_box
from ..data.image_inputs import ImageInput, NamedImage, named_images
from ..evaluation.explanation import Explanation, explain_views, methods_of
from ..io import create_folder, refuse_occupied, write_json
from .overlay import Box, overlay, sheet

_BATCH = 16

Explained = Explanation | UnreadableImage


def explain_run(
    run: str | Path,
    images: ImageInput,
    out: str | Path | None = None,
    *,
    label: str | None = None,
    model: ModelChoice = "recommended",
    device: str = "auto",
    code: str | None = None,
    advance: Callable[[int], object] = lambda images: None,
) -> list[Explained]:
    """Explains the prediction for each image, in order; an image that cannot be read gives its error.

    images: as for `Classifier.predict`. out: a new folder, which gets a folder for each image; see `write`.
    label: the class to explain; by default the predicted one. model, device, code: as for `load`. advance:
    called with the number of images just done.

        [found] = deitkit.explain("runs/flowers", "photo.jpg")
        found.label, found.map()  # the class, and where the evidence for it is

    Raises a DeitkitError for anything the caller can fix.
    """
    if out is not None:
        refuse_occupied(Path(out))
    with log.activity("loading the model"):
        classifier = load_folder(model_folder(Path(run), model), device, backend="pytorch", code=code)
        methods_of(classifier)
    pending, found = named_images(images), list[Explained]()
    while chunk := list(islice(pending, _BATCH)):
        for image, explained in zip(chunk, _explained(classifier, chunk, label), strict=True):
            found.append(explained)
            if out is not None and isinstance(explained, Explanation):
                folder = Path(out) / f"{len(found):03d}-{Path(image.name).stem}"
                found[-1] = _written(folder, explained, image, classifier)
            advance(1)
    return found


def write(folder: Path, found: Explanation, image: Image.Image, seen: Box) -> None:
    """Writes an explanation into the new folder `folder`. seen: the part of the image that the model saw.

    METHOD.png                   the mean over tokens, over the image at its own size
    METHOD.npy                   each token's map, (P, gh, gw)
    attention-heads-TOKEN.png    a row per block, a column per head
    attention-heads.npy          (blocks, heads, P, gh, gw)
    explanation.json             the class, its probability, and what the maps cover
    """
    create_folder(folder)
    for method, maps in found.maps.items():
        np.save(folder / f"{method}.npy", maps)
        overlay(image, maps.mean(0), seen).save(folder / f"{method}.png")
    if found.attention is not None:
        np.save(folder / "attention-heads.npy", found.attention)
        view = image.crop(seen)
        for p, token in enumerate(found.tokens):
            by_head = [list(block[:, p]) for block in found.attention]
            sheet(view, by_head).save(folder / f"attention-heads-{token.replace(' ', '-')}.png")
    described = {
        "source": found.source,
        "label": found.label,
        "probability": found.probability,
        "predicted": found.predicted,
        "tokens": list(found.tokens),
        "methods": list(found.maps),
        "image_size": [image.height, image.width],
        "seen": list(seen),  # left, top, right, bottom
    }
    write_json(folder / "explanation.json", described)


def _explained(classifier: Classifier, images: Sequence[NamedImage], label: str | None) -> list[Explained]:
    views = [classifier.view_or_error(image) for image in images]
    readable = [(i.name, v) for i, v in zip(images, views, strict=True) if not isinstance(v, UnreadableImage)]
    names, arrays = [name for name, _ in readable], [view for _, view in readable]
    explanations = iter(explain_views(classifier, names, arrays, [label] * len(names)))
    return [v if isinstance(v, UnreadableImage) else next(explanations) for v in views]


def _written(folder: Path, found: Explanation, image: NamedImage, classifier: Classifier) -> Explained:
    """Writes the explanation; returns the error if the file is gone by now."""
    try:
        whole = image.whole(classifier.max_pixels)
    except UnreadableImage as error:
        return UnreadableImage(error.path, error.reason)
    write(folder, found, whole, seen_box(whole.size, classifier.image_size, classifier.crop))
    return found
