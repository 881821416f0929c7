"""Teachers: the speed of each backend, and the accuracy of students under them.

    python benchmarks/teachers.py speed [--models tf_efficientnet_lite0,resnet18,regnety_040] [--size 128]
        [--batch 32] [--device cpu] [--rounds 5] [--seconds 2] [--backends pytorch,openvino] [--out FILE]
    python benchmarks/teachers.py table --data FOLDER --out FILE "SPEC [section.key=value ...]" [...]
        [--epochs 10] [--seeds 0 1 2] [--set section.key=value ...]

speed: random weights, since the time is the same. The reference is timm's model in eager PyTorch; the
backends also return the two feature maps. Each side has its own process and the sides take turns. The
chosen backend is the one that training would choose.

table: one `deitkit.train` per teacher and seed, in its own process, with all else equal; the spec "none"
is the baseline. Settings after a spec are for that teacher, those of --set for all. FILE is written after
each run, and runs that are in it are not repeated.

Run it on a quiet machine if seconds matter. Tables go to stderr; the last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import timm
import torch

import deitkit
from deitkit.evaluation.side_by_side import serve, take_turns
from deitkit.evaluation.speed import peak_memory_mb
from deitkit.io import write_text
from deitkit.preprocessing import Preprocessing
from deitkit.teachers.pretrained import Pretrained, backend_builders, choose_backend
from deitkit.teachers.sources.timm_model import TimmBackbone
from provenance import provenance

BASELINE = "timm eager"
BACKENDS = ("pytorch", "compiled", "onnxruntime", "openvino")


def teacher_of(name: str, size: int) -> Pretrained:
    """A timm model with random weights as a teacher."""
    torch.manual_seed(0)
    backbone = TimmBackbone(timm.create_model(name, num_classes=0).eval())
    return Pretrained(name, Preprocessing((size, size)), backbone, head=None, outputs=None, params=0)


def side(spec: dict[str, Any]) -> Callable[[int], Callable[[], object]]:
    """The calls for `serve`: forward passes of one side."""
    device, size = torch.device(spec["device"]), spec["size"]
    if spec["side"] == BASELINE:
        torch.manual_seed(0)
        model = timm.create_model(spec["model"]).eval().to(device)

        def run(images: torch.Tensor) -> object:
            with torch.inference_mode():
                return model(images)

    else:
        teacher = teacher_of(spec["model"], size)
        view = teacher.preprocessing
        run = choose_backend(backend_builders(teacher, view, device), view, device, spec["side"])

    def passes(batch_size: int) -> Callable[[], object]:
        images = torch.rand(batch_size, 3, size, size).to(device)
        return lambda: run(images)

    return passes


def chosen_name(name: str, options: argparse.Namespace) -> str:
    teacher, device = teacher_of(name, options.size), torch.device(options.device)
    view = teacher.preprocessing
    return choose_backend(backend_builders(teacher, view, device), view, device, "auto").name


def speed(options: argparse.Namespace) -> dict[str, Any]:
    batches = [int(b) for b in options.batch.split(",")]
    models = {}
    for name in options.models.split(","):
        sides = {}
        for one in (BASELINE, *options.backends.split(",")):
            spec = {"side": one, "model": name, "size": options.size, "device": options.device}
            sides[one] = [sys.executable, __file__, "--side", json.dumps(spec)]
        found, failed = take_turns(sides, batches, rounds=options.rounds, seconds=options.seconds)
        chosen = chosen_name(name, options)
        rows = [{"side": s, "batch": b} | turns.to_dict() for (s, b), turns in found.items()]
        for row in rows:
            print(
                f"{name:24} batch {row['batch']:<4}{row['side']:14}{row['images_per_s']:9.1f} images/s  "
                f"p50 {row['p50_ms']:8.1f} ms  p90 {row['p90_ms']:8.1f} ms  {row['memory_mb']:7.0f} MB",
                file=sys.stderr,
            )
        ratios = {
            f"batch {b}": round(found[chosen, b]["images_per_s"] / found[BASELINE, b]["images_per_s"], 2)
            for b in batches
            if (chosen, b) in found and (BASELINE, b) in found
        }
        print(f"{name:24} chosen: {chosen}, over {BASELINE}: {ratios}", file=sys.stderr)
        models[name] = {"rows": rows, "failed": failed, "chosen": chosen, "chosen_over_timm_eager": ratios}
    return {"size": options.size, "models": models}


def one_training(spec: dict[str, Any]) -> dict[str, Any]:
    """One student under one teacher."""
    started = time.monotonic()
    settings = spec["settings"] | {"teacher.spec": spec["teacher"], "train.seed": spec["seed"]}
    if spec["teacher"] == "none":
        settings["distillation.mode"] = "none"
    with tempfile.TemporaryDirectory() as folder:
        run = deitkit.train(spec["data"], Path(folder) / "run", **settings)
    teacher, student = run.results["teacher"] or {}, run.results["student"]
    return {
        "how": teacher.get("how"),
        "teacher_top1": teacher.get("top1"),
        "teacher_images_per_s": teacher.get("images_per_s"),
        "teacher_backend": teacher.get("backend"),
        "student_top1": student["top1"],
        "interval": student["interval"],
        "seconds": round(time.monotonic() - started, 1),
        "memory_mb": round(peak_memory_mb(torch.device("cuda" if torch.cuda.is_available() else "cpu"))),
    }


def table(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields the results so far, after each run."""
    found: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    held = dict(item.split("=", 1) for item in options.set) | {"train.epochs": options.epochs}
    facts = {"data": options.data.name, "epochs": options.epochs, "settings": held}
    if found and any(found[key] != value for key, value in facts.items()):
        sys.exit(f"{options.out} holds a table of other settings; choose another --out")
    rows, failed = found.get("rows", []), {}
    for seed in options.seeds:
        for arm in options.specs:
            if any((row["arm"], row["seed"]) == (arm, seed) for row in rows):
                continue
            teacher, *own = arm.split()
            settings = held | dict(item.split("=", 1) for item in own)
            spec = {"teacher": teacher, "data": str(options.data), "seed": seed, "settings": settings}
            command = [sys.executable, __file__, "--one", json.dumps(spec)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                failed[arm] = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
                print(f"{arm}: {failed[arm]}", file=sys.stderr)
                continue
            row = {"arm": arm, "seed": seed} | json.loads(done.stdout.strip().splitlines()[-1])
            rows.append(row)
            top1 = "" if row["teacher_top1"] is None else f"{row['teacher_top1']:.1f} %"
            print(
                f"{arm:40} seed {seed}  teacher {top1:>8}  student {row['student_top1']:5.1f} %  "
                f"{row['seconds']:7.0f} s {row['memory_mb']:7} MB  {row['how'] or ''}",
                file=sys.stderr,
            )
            yield facts | {"rows": rows, "failed": failed}
    yield facts | {"rows": rows, "failed": failed}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    fast = verbs.add_parser("speed")
    fast.add_argument("--models", default="tf_efficientnet_lite0,resnet18,regnety_040")
    fast.add_argument("--size", type=int, default=128)
    fast.add_argument("--batch", default="32")
    fast.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    fast.add_argument("--backends", help="all that the device can have, unless told")
    fast.add_argument("--rounds", type=int, default=5)
    fast.add_argument("--seconds", type=float, default=2.0, help="a side, batch and round")
    tried = verbs.add_parser("table")
    tried.add_argument("specs", nargs="+", metavar="SPEC")
    tried.add_argument("--data", type=Path, required=True)
    tried.add_argument("--epochs", type=int, default=10)
    tried.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    tried.add_argument("--set", action="append", default=[], help="section.key=value")
    fast.add_argument("--out", type=Path, help="also write the JSON here")
    tried.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.verb == "speed" and options.backends is None:
        options.backends = ",".join(BACKENDS if options.device == "cpu" else BACKENDS[:2])
    return options


def main() -> None:
    if sys.argv[1:2] == ["--side"]:
        spec = json.loads(sys.argv[2])
        serve(lambda: side(spec), spec["device"])
        return
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(one_training(json.loads(sys.argv[2]))))
        return
    options = parse()
    about = {
        "benchmark": f"teachers {options.verb}",
        **provenance(timm, on_gpu=torch.cuda.is_available()),
    }
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for part in [speed(options)] if options.verb == "speed" else table(options):
        found = about | part
        if options.out is not None:
            write_text(options.out, json.dumps(found))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
