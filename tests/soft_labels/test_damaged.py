"""Stored soft labels are read, or refused with a sentence, whatever happened to their files."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from deitkit.errors import DeitkitError, RunFolderError
from deitkit.soft_labels.manifest import read_manifest
from deitkit.soft_labels.replay import refuse_other_views
from deitkit.soft_labels.store import open_soft_labels
from tests.damage import damage

V01 = Path(__file__).parents[1] / "golden" / "v01" / "labels"


@pytest.fixture
def labels(tmp_path):
    """What version 0.1 wrote."""
    return Path(shutil.copytree(V01, tmp_path / "labels"))


class Made(Exception):
    """Views were asked for, so the kept ones had been read."""


def make(batch):
    raise Made


def use(folder: Path) -> None:
    """Reads everything that a training would."""
    store = open_soft_labels(folder)
    store.verify(store.epochs(), lambda n: None)
    if store.epochs():
        store.outputs(0, 0, torch.device("cpu"))
    with pytest.raises(Made):
        refuse_other_views(store, make)


@pytest.mark.parametrize("name", ["manifest.json", "epoch-00000-000.safetensors", "views.safetensors"])
def test_a_damaged_file_is_read_or_refused_with_a_sentence(labels, name):
    path, rng = labels / name, random.Random(name)
    content, count = path.read_bytes(), 0
    for _ in range(200):
        path.write_bytes(content)
        damage(path, rng)
        try:
            use(labels)
        except DeitkitError as error:
            sentence = str(error)
            assert str(labels) in sentence and "\n" not in sentence and len(sentence) < 500, sentence
            assert "; " in sentence, sentence
            count += 1
    assert count > 100


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": 10**12}, "images is out of range"),
        ({"images": 0}, "images is out of range"),
        ({"unlabeled": 36}, "unlabeled is out of range"),
        ({"shard_batches": 0}, "shard_batches is out of range"),
        ({"labels": {"kind": "top-k"}}, "labels is out of range"),
        ({"labels": {"kind": "top-k", "k": 10**9, "temperature": 1.0}}, "labels is out of range"),
        ({"classes": ["a", "a"]}, "classes is out of range"),
        ({"classes": "ab"}, 'classes is "ab", not a list'),
    ],
)
def test_a_manifest_with_a_wrong_entry_is_refused_by_name(labels, change, words):
    manifest = json.loads((labels / "manifest.json").read_text())
    (labels / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(RunFolderError, match=rf"cannot be read \({words}.*; run deitkit label"):
        read_manifest(labels)


def test_the_fingerprint_of_version_0_1_stays(labels):
    """Every shard names it."""
    saved = json.loads((labels / "manifest.json").read_text())
    manifest = read_manifest(labels)
    assert manifest.to_dict() == saved
    store = open_soft_labels(labels)
    assert store.epochs() == 2
    store.verify(2, lambda n: None)


@pytest.mark.parametrize("name", ["manifest.json", "epoch-00000-000.safetensors", "views.safetensors"])
def test_only_regular_files_are_opened(labels, name):
    (labels / name).unlink()
    os.mkfifo(labels / name)  # reading it would wait for ever
    with pytest.raises(RunFolderError):
        use(labels)
