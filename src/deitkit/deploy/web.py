"""A model as a web page: a folder of static files that classifies images in the browser.

    index.html, *.css, *.js   the page, from deploy/web_page
    model.json                classes, preprocessing and the model card; see `page_facts`
    model.onnx                the graph, for a student with the output `attention`
    runtime/                  ONNX Runtime Web and its licence; the WASM file is compressed

`deitkit serve` shows the same page, with the model on the server.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from ..classifier import Classifier
from ..inference.attention_graph import with_attention
from ..inference.joint_classifier import ClassifierGraph
from ..io import write_json
from ..tasks import THRESHOLD
from .model_card import ModelCard
from .web_runtime import LICENSE, SCRIPT, WASM

GRAPH, FACTS, RUNTIME = "model.onnx", "model.json", "runtime"


def web_graph(classifier: Classifier) -> ClassifierGraph:
    """The classifier's graph as the page runs it: with attention, if it is a student's."""
    return with_attention(classifier.as_graph())


def page_files() -> dict[str, bytes]:
    """The static files of the page, by name."""
    folder = resources.files(__package__).joinpath("web_page")
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def page_facts(
    classifier: Classifier, output_names: Sequence[str], card: ModelCard, home: Literal["browser", "server"]
) -> dict[str, Any]:
    """What the page is told of the model: the content of `model.json`.

    output_names: of the graph that runs. home: where it runs.
    """
    return {
        "home": home,
        "classes": list(classifier.classes),
        "task": classifier.task,
        "threshold": THRESHOLD,
        "image_size": list(classifier.image_size),
        "crop": classifier.crop,
        "two_heads": "distill_logits" in output_names,
        "attention": "attention" in output_names,
        "familiar_up_to": classifier.calibration.familiar_up_to if "unfamiliarity" in output_names else None,
        "card": asdict(card),
    }


def write_site(
    folder: Path, classifier: Classifier, graph: bytes, card: ModelCard, runtime: dict[str, bytes]
) -> None:
    """Writes the page for `classifier` to `folder`, which is created. graph: of `web_graph`, as ONNX."""
    (folder / RUNTIME).mkdir(parents=True)
    for name, content in page_files().items():
        (folder / name).write_bytes(content)
    facts = page_facts(classifier, web_graph(classifier).output_names, card, "browser")
    write_json(folder / FACTS, facts)
    (folder / GRAPH).write_bytes(graph)
    (folder / RUNTIME / SCRIPT).write_bytes(runtime[SCRIPT])
    # The page decompresses it: not every host of static files would, and 14 MB become 4.
    (folder / RUNTIME / f"{WASM}.gz").write_bytes(gzip.compress(runtime[WASM], mtime=0))
    (folder / RUNTIME / "LICENSE").write_text(LICENSE, encoding="utf-8")
