"""Small generated images, and a cache of their own for the tests."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

# The smallest job that has every part: no teacher, two 16-pixel patches a side.
TINY = [
    "--teacher=none",
    "--image-size=16",
    "--patch-size=8",
    "--batch-size=8",
    "--epochs=2",
    "--device=cpu",
]

# A script for a process of its own: runs the command lines in its argument, a JSON list of them.
VERBS = """
import json, sys
from deitkit import cli
for arguments in json.loads(sys.argv[1]):
    try:
        cli.main(arguments)
    except SystemExit as end:
        if end.code:
            raise SystemExit(f"{arguments} ended with {end.code}")
"""


def write_images(
    folder: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 12, side: int = 24
) -> Path:
    """Images whose mean colour tells the class, with noise."""
    rng = np.random.RandomState(0)
    for k, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = rng.randint(0, 120, (side, side + i % 5, 3)) + np.array(
                [130 * (k % 2), 60, 130 * (k // 2)]
            )
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


def write_labelled(
    folder: Path, labels: tuple[str, ...] = ("red", "green", "blue"), count: int = 48, side: int = 20
) -> Path:
    """Images with several labels each: every label brightens one channel; and their labels.csv."""
    rng = np.random.RandomState(0)
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["path,labels"]
    for i in range(count):
        shown = [k for k in range(len(labels)) if (i >> k) % 2]  # every combination, none at all too
        pixels = rng.randint(0, 110, (side + i % 3, side, 3))
        pixels[..., shown] += 130
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
        lines.append(f"{i}.png,{';'.join(labels[k] for k in shown)}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEITKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def shown() -> None:
    """Log records go to stderr, as under the command line."""
    from deitkit import log

    log.show_progress()


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same random models and images each time, so that a printed difference is the same too."""
    import torch

    torch.manual_seed(0)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def write_random_run(folder: Path, images: Path, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """A run folder as far as it is needed to use it: a random model, its settings, where its images are."""
    import torch
    from safetensors.torch import save_file

    from deitkit.config import Config
    from deitkit.models.deit import DeiT

    torch.manual_seed(0)
    shape = {"embed_dim": 16, "depth": 2, "num_heads": 2, "distilled": True}
    sizes = {"image_size": (16, 24), "patch_size": (8, 8)}
    model = DeiT(num_classes=len(classes), **sizes, **shape)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    preprocessing = {"image_size": [16, 24], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    saved = {
        "config": Config().to_dict(),
        "classes": list(classes),
        "preprocessing": preprocessing | {"interpolation": "bicubic", "crop": 0.9},
        "student": {"name": "nano"} | {k: list(v) for k, v in sizes.items()} | shape,
        "data": {"root": str(images)},
    }
    (folder / "config.json").write_text(json.dumps(saved))
    return folder


@pytest.fixture
def random_run(tmp_path: Path, image_folder: Path) -> Path:
    return write_random_run(tmp_path / "run", image_folder)


@pytest.fixture
def hybrid_run(tmp_path: Path, image_folder: Path) -> Path:
    """A run folder with a random hybrid student, as far as it is needed to use it."""
    import torch
    from safetensors.torch import save_file

    from deitkit.config import Config
    from deitkit.models.deit import create_model

    torch.manual_seed(0)
    model = create_model("nano-hybrid", num_classes=2, image_size=64).eval()
    folder = tmp_path / "run"
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    preprocessing = {"image_size": [64, 64], "mean": [0.5] * 3, "std": [0.5] * 3}
    saved = {
        "config": Config().to_dict(),
        "classes": ["cat", "dog"],
        "preprocessing": preprocessing | {"interpolation": "bicubic", "crop": 0.9},
        "student": {"name": "nano-hybrid"} | model.describe(),
        "data": {"root": str(image_folder)},
    }
    (folder / "config.json").write_text(json.dumps(saved))
    return folder


@pytest.fixture
def as_user() -> Iterator[Path]:
    """An empty folder, and the test run without root's right to read everything."""
    if not hasattr(os, "geteuid"):
        pytest.skip("rights of this kind are POSIX's")
    folder, own = Path(tempfile.mkdtemp()), os.geteuid()
    if own == 0:
        # What is imported at its first use may lie where only root can read.
        Image.init()
        importlib.import_module("numpy.random")
        os.chown(folder, 65534, -1)
        os.seteuid(65534)
    try:
        yield folder
    finally:
        os.seteuid(own)
        for path in folder.rglob("*"):
            path.chmod(0o700)
        shutil.rmtree(folder, ignore_errors=own == 0)
