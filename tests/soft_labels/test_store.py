"""A shard is whole, in its place and of its store, or it is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from deitkit import recipes
from deitkit.errors import DeitkitError
from deitkit.locks import Claims
from deitkit.soft_labels.codec import SoftLabelFormat
from deitkit.soft_labels.manifest import Manifest, read_manifest
from deitkit.soft_labels.store import SoftLabelStore, open_soft_labels

CPU = torch.device("cpu")
CLASSES = ("a", "b", "c")
RESOLVED = {
    "student.name": "nano",
    "student.image_size": 16,
    "student.patch_size": 8,
    "data.workers": 1,
    "train.epochs": 2,
    "train.batch_size": 4,
    "train.micro_batch_size": 4,
    "train.loss": "cross-entropy",
    "train.balance": "none",
    "train.metric": "top1",
}


def logits_of(epoch: int, indices) -> torch.Tensor:
    """Logits that differ between epochs and images."""
    return torch.stack([torch.tensor([i % 7, (i + epoch) % 5, epoch * 0.5]) for i in indices.tolist()])


@pytest.fixture
def store(tmp_path) -> SoftLabelStore:
    """Two epochs of 20 images in batches of 4 and shards of two batches: three shards, the last of one."""
    config = recipes.get("small-data").override(RESOLVED)
    manifest = Manifest(
        settings=config.to_dict(),
        data_fingerprint="0" * 16,
        images=20,
        unlabeled=0,
        classes=CLASSES,
        format=SoftLabelFormat("top-k", 3, 2.0),
        shard_batches=2,
        teacher={"name": "t", "top1": 90.0},
        teacher_sha256="",
        versions={"torch": torch.__version__},
    )
    manifest.write(tmp_path)
    store = open_soft_labels(tmp_path)
    for place in store.places(2):
        batches = store.plan(place[0])[store.batches(place)]
        store.write(place, [store.codec.encode(logits_of(place[0], b.indices)) for b in batches])
    return store


def test_outputs_are_those_of_the_planned_batches(store):
    assert store.shards == 3 and store.epochs() == 2 and store.views_per_epoch == 20
    for epoch in (1, 0):
        for position, batch in enumerate(store.plan(epoch)):
            found = store.outputs(epoch, position, CPU)
            expected = logits_of(epoch, batch.indices).softmax(1)
            torch.testing.assert_close(found.logits.softmax(1), expected, rtol=1e-4, atol=1e-6)
            assert found.feature_maps == ()


def test_the_manifest_comes_back(store):
    assert read_manifest(store.folder) == store.manifest
    assert read_manifest(store.folder).fingerprint() == store.id


@pytest.mark.parametrize("change", ["cut", "empty", "flipped", "gone", "moved", "foreign"])
def test_a_bad_shard_is_refused_by_name(store, change):
    path = store.path((1, 0))
    data = bytearray(path.read_bytes())
    if change == "cut":
        path.write_bytes(data[:-5])
    elif change == "empty":
        path.write_bytes(b"")
    elif change == "flipped":
        data[-1] ^= 1
        path.write_bytes(data)
    elif change == "gone":
        path.unlink()
    elif change == "moved":
        shutil.copy(store.path((0, 0)), path)
    else:
        other = SoftLabelStore(store.folder, replace(store.manifest, data_fingerprint="1" * 16))
        other.write((1, 0), [store.read((1, 0))])
    with pytest.raises(DeitkitError, match=f"{path.name}.*label again: deitkit label DATA --epochs 2"):
        open_soft_labels(store.folder).verify(2, lambda n: None)
    open_soft_labels(store.folder).verify(1, lambda n: None)


def test_a_gap_ends_the_complete_epochs(store):
    store.path((0, 2)).unlink()
    assert store.epochs() == 0


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 99}', '{"version": 1, "classes": []}'])
def test_a_broken_manifest_is_refused(store, text):
    (store.folder / "manifest.json").write_text(text)
    with pytest.raises(DeitkitError, match=r"manifest\.json cannot be read"):
        open_soft_labels(store.folder)


def test_no_manifest_says_how_to_label(tmp_path):
    with pytest.raises(DeitkitError, match="deitkit label DATA"):
        open_soft_labels(tmp_path / "none")


HOLDER = """
import sys
from pathlib import Path
from deitkit.locks import Claims
with Claims(Path(sys.argv[1])) as claims:
    print(claims.take(0), claims.take(1), flush=True)
    sys.stdin.read()
"""


def test_a_piece_belongs_to_one_process_until_that_ends(tmp_path):
    pytest.importorskip("fcntl")
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "True True\n"
    with Claims(tmp_path / "lock") as claims:
        assert [claims.take(piece) for piece in (0, 1, 2)] == [False, False, True]
        child.kill()
        child.communicate()
        assert claims.take(0, wait=True) and claims.take(1)
