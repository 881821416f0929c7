"""Writes the folders in v01/ with the code of version 0.1. No other version may write them again.

    python -m tests.golden.write_v01

Paths of this machine become /data, which the tests replace by a folder of theirs. Students are nano with most
of their values zero, which stay zero in training, so that the files are small when compressed.
"""

from __future__ import annotations

import gzip
import json
import runpy
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

import deitkit
from deitkit.weights import pretrained

from . import record

V01 = Path(__file__).with_name("v01")
ROOT = "/data"  # stands for the stage's folder in what is kept
START = "--init=start/nano.safetensors"
TRAIN = ["train", "pictures", *record.STUDENT, *record.TEACHER, START, "--epochs=6"]
STORED = ["train", "pictures", "--labels=labels", START, "--patch-size=8", "--device=cpu"]
_KEPT = (".json", ".jsonl", ".csv", ".safetensors")
_COMPRESSED_ABOVE = 40_000  # bytes
_WIDTH, _HIDDEN = 16, 32  # channels of the first block that are in use; the other blocks are not


def write_sparse_start(path: Path) -> None:
    """A plain nano of a thousand classes that uses a few channels of one block."""
    model = deitkit.create_model(
        "nano", num_classes=1000, image_size=(16, 16), patch_size=(8, 8), distilled=False
    )
    rng, state = np.random.RandomState(5), {}
    for name, tensor in model.state_dict().items():
        values = np.zeros(tuple(tensor.shape), np.float32)
        used = [slice(None)] * values.ndim
        if name in ("cls_token", "pos_embed", "head.weight"):
            used[-1] = slice(_WIDTH)
        elif name.startswith("patch_embed"):
            used[0] = slice(_WIDTH)
        elif name in ("norm.weight", "blocks.0.norm1.weight", "blocks.0.norm2.weight"):
            values[:_WIDTH] = 1
            used[0] = slice(0)
        elif name.startswith("blocks.0.") and name.endswith("weight"):
            hidden = slice(_HIDDEN if ".fc" in name else _WIDTH)
            used = [slice(_WIDTH), hidden] if ".proj." in name or ".fc2." in name else [hidden, slice(_WIDTH)]
        else:
            used[0] = slice(0)
        if ".qkv.weight" in name:  # of the first head
            for part in values.reshape(3, -1, values.shape[1]):
                part[:_WIDTH, :_WIDTH] = rng.standard_normal((_WIDTH, _WIDTH)) * 0.2
        else:
            values[tuple(used)] = rng.standard_normal(values[tuple(used)].shape) * 0.2
        state[name] = torch.from_numpy(values)
    save_file(state, path)


def pack(stage: record.Stage, run: str) -> None:
    """Packs a pre-trained run as examples/pack_start.py does, into the stage's folder `start`."""
    packed = stage.folder / "start" / "nano.safetensors"
    pretrained.shipped_file = lambda student: packed
    sys.argv = ["pack_start.py", str(stage.folder / run)]
    runpy.run_path(str(Path("examples/pack_start.py")), run_name="__main__")


def keep(stage: record.Stage, name: str, leave_out: tuple[str, ...] = ()) -> None:
    """Copies what readers need of a folder, without paths of this machine, large files compressed."""
    folder = stage.folder / name
    for path in sorted(folder.rglob("*")):
        if path.suffix not in _KEPT or path.name in leave_out:
            continue
        kept = V01 / path.relative_to(stage.folder)
        kept.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes()
        if path.suffix != ".safetensors":
            content = content.replace(str(stage.folder).encode(), ROOT.encode())
        elif len(content) > _COMPRESSED_ABOVE:
            kept = kept.with_name(f"{kept.name}.gz")
            content = gzip.compress(content, mtime=0)
        kept.write_bytes(content)


def main() -> None:
    assert deitkit.__version__ == "0.1.0", "only version 0.1 writes these"
    shutil.rmtree(V01, ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        stage = record.Stage.build(Path(folder).resolve())
        write_sparse_start(stage.folder / "sparse.safetensors")
        alone = [*record.STUDENT, *record.TEACHER, "--init=sparse.safetensors", "--epochs=2"]
        stage.deitkit("pretrain", "pictures", "--out=run", *alone, "--set=distillation.guidance=0")
        pack(stage, "run")
        stage.deitkit(*TRAIN, "--out=finished")
        record.stop_at_a_checkpoint(stage, *TRAIN, "--out=interrupted")
        views = ["--image-size=16", "--batch-size=16", "--set=augment.mixup=0.8", "--epochs=2"]
        stage.deitkit("label", "pictures", "--out=labels", *record.TEACHER, *views, "--device=cpu")
        for name in ("finished", "interrupted", "labels", "start"):
            keep(stage, name)
        old = sorted((V01 / "interrupted" / "checkpoints").iterdir())[:-1]
        for path in old:
            path.unlink()
        for path in (V01 / "finished" / "checkpoints").iterdir():
            path.unlink()
        (V01 / "finished" / "checkpoints").rmdir()
        stage.deitkit(*STORED, "--out=from-labels")
        stage.deitkit(
            "train", "pictures", *record.STUDENT, "--teacher=none", START, "--epochs=2", "--out=begun"
        )
        expected = {
            "environment": record.environment(),
            "versions": record.versions(),
            "predict": stage.predict("finished", "more", "--top=3"),
            "predict_teacher": stage.predict("finished/teacher", "more", "--top=3"),
            "eval": stage.evaluate("finished", "pictures"),
            "finished": stage.hash_of("finished/model.safetensors"),
            "from_labels": stage.hash_of("from-labels/model.safetensors"),
            "from_start": stage.hash_of("begun/model.safetensors"),
        }
    text = json.dumps(expected, indent=1, sort_keys=True) + "\n"
    (V01 / "expected.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
