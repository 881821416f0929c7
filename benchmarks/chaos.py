"""Kills, starves and damages jobs of every verb, and checks that nothing is lost.

    python benchmarks/chaos.py --minutes 60 --out results/reliability/chaos.json
    python benchmarks/chaos.py --case 17 --keep     # one case again, its folder kept

A case runs one verb on small images and disturbs it in one way. Afterwards the same command (train and
pretrain with --resume) must end in the same bytes as an undisturbed job, or refuse with one sentence. No file
under a final name may be incomplete, and no process, lock or shared memory may be left behind. A server is
asked for every image, and then to stop.

Seed and number determine a case, but for what the scheduler adds. A job is a fork of this process, which has
imported the libraries, so that it starts at once. Two things differ from a user's job, to fit more cases into
an hour: checkpoints are written at every step, and inference speed is measured for an instant.
"""

from __future__ import annotations

import os

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # weights are compared bit for bit; before libraries start threads

import argparse
import base64
import contextlib
import csv
import ctypes
import hashlib
import importlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from deitkit import cli
from deitkit.deploy import serving, web_runtime
from deitkit.evaluation import speed
from deitkit.io import digest
from deitkit.training import results, trainer

PATIENCE = 300.0  # seconds after which a job hangs; the longest takes 20 on a busy core
KILLS_IN_A_CASE = 8
STUDENT = ["--patch-size=8", "--init=none", "--epochs=3"]
SIZES = ["--image-size=16", "--batch-size=16", "--device=cpu", "--workers=1"]
RANDOM = ["--set=augment.mixup=0.8", "--set=augment.erasing=0.25", "--set=student.drop_path_rate=0.2"]


def import_libraries() -> None:
    """Those that verbs import when they need them: a fork has them at once."""
    for name in (
        "deitkit.classifier", "deitkit.deploy.exporter", "deitkit.report.analysis_run",
        "deitkit.training.labelling", "deitkit.training.pretraining", "jinja2",
        "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg", "matplotlib.pyplot",
        "numpy.random", "onnx", "onnxruntime", "onnxscript", "openvino", "pydantic", "rich.table",
        "deitkit.deploy.served_model", "deitkit.deploy.server", "deitkit.evaluation.data_check", "uvicorn",
        "captum", "webdataset",
    ):  # fmt: skip
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    Image.init()


# The stage: what jobs read


@dataclass(frozen=True)
class Stage:
    """Paths that a job reads and writes; a case replaces those that it disturbs."""

    images: Path
    teacher: Path
    runtime: Path
    labels: Path
    run: Path
    cache: Path
    out: Path

    @property
    def taught(self) -> list[str]:
        return [
            f"--teacher=timm:test_efficientnet@{self.teacher}",
            "--set=teacher.image_size=32",
            "--set=teacher.backend=pytorch",
        ]


@dataclass(frozen=True)
class Job:
    """A command. again: what resumes it. reads: inputs that have to be there, as names of Stage. partial: the
    exit status that says that some images could not be read."""

    name: str
    command: Callable[[Stage], list[str]]
    again: tuple[str, ...] = ()
    reads: tuple[str, ...] = ("images",)
    partial: int = 0


def _train(s: Stage, *more: str) -> list[str]:
    return ["train", str(s.images), "--out", str(s.out / "run"), *SIZES, *STUDENT, *RANDOM, *more]


PROBE = "--set=teacher.probe_views=1"
JOBS = [
    Job("train", lambda s: _train(s, "--teacher=none"), ("--resume",)),
    Job("train, teacher and baseline", lambda s: _train(s, *s.taught, PROBE, "--baseline"), ("--resume",)),
    Job(
        "train, soft labels",
        lambda s: (
            [
                "train",
                str(s.images),
                "--out",
                str(s.out / "run"),
                "--soft-labels",
                str(s.labels),
                "--device=cpu",
                "--patch-size=8",
                "--init=none",
                "--workers=1",
            ]
        ),
        ("--resume",),
        ("images", "labels"),
    ),
    Job(
        "label",
        lambda s: (
            ["label", str(s.images), "--out", str(s.out / "labels"), "--epochs=3", *SIZES, *s.taught, PROBE]
        ),
    ),
    Job(
        "teacher fit",
        lambda s: (
            [
                "teacher",
                "fit",
                s.taught[0].removeprefix("--teacher="),
                str(s.images),
                "--out",
                str(s.out / "fitted"),
                *s.taught[1:],
                PROBE,
            ]
        ),
    ),
    Job(
        "pretrain",
        lambda s: (
            [
                "pretrain",
                str(s.images),
                "--out",
                str(s.out / "start"),
                "--student=nano",
                *SIZES,
                *s.taught,
                "--patch-size=8",
                "--epochs=2",
            ]
        ),
        ("--resume",),
    ),
    Job("export onnx", lambda s: _export(s, "onnx", "a.onnx"), reads=("run",)),
    Job("export openvino", lambda s: _export(s, "openvino", "a.xml"), reads=("run",)),
    Job(
        "export web",
        lambda s: [*_export(s, "web", "site"), f"--runtime={s.runtime}", "--model=student"],
        reads=("run",),
    ),
    Job(
        "pack",
        lambda s: ["pack", str(s.images), f"--out={s.out / 'pack'}", "--images-per-shard=5", "--workers=1"],
    ),
    Job(
        "explain",
        lambda s: ["explain", str(s.run), str(s.images), f"--out={s.out / 'explained'}"],
        (),
        ("run", "images"),
        1,
    ),
    Job("convert", lambda s: ["convert", str(s.run), str(s.out / "timm"), "--to=timm"], reads=("run",)),
    Job("predict", lambda s: ["predict", str(s.run), str(s.images), "--csv"], (), ("run", "images"), 1),
    Job("eval", lambda s: ["eval", str(s.run), str(s.images), "--json"], reads=("run", "images")),
    Job(
        "analyze",
        lambda s: ["analyze", str(s.run), str(s.images), f"--out={s.out}"],
        reads=("run", "images"),
    ),
    Job("check", lambda s: ["check", str(s.images), f"--out={s.out}", "--json"]),
    Job("serve", lambda s: ["serve", str(s.run), "--port=0", "--backend=pytorch"], reads=("run", "images")),
]


def _export(s: Stage, kind: str, name: str) -> list[str]:
    return ["export", str(s.run), f"--to={kind}", "--out", str(s.out / name)]


def _stand_in_runtime(folder: Path) -> None:
    """Writes something of the names of ONNX Runtime Web, which a page takes from now on."""
    folder.mkdir()
    for name in web_runtime._SHA256:
        (folder / name).write_bytes(f"{name}\n".encode() * 1000)
    web_runtime._SHA256 = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def ask_server(images: Path) -> None:
    """Sends this process's server every image, prints what it answers, and interrupts it as Ctrl+C does."""
    listen = serving._listening

    def listen_and_ask(host: str, port: int) -> Any:
        listener = listen(host, port)
        address = "http://{}:{}/predict".format(*listener.getsockname()[:2])
        threading.Thread(target=ask, args=(address,), daemon=True).start()
        return listener

    def ask(address: str) -> None:
        for path in sorted(images.rglob("*.png")):
            with contextlib.suppress(OSError):  # an image that is gone
                data = base64.b64encode(path.read_bytes()).decode()
                body = json.dumps({"images": [{"name": path.name, "data": data}]}).encode()
                headers = {"Content-Type": "application/json"}
                try:
                    request = urllib.request.Request(address, body, headers)  # noqa: S310 - a server of ours
                    with urllib.request.urlopen(request) as answer:  # noqa: S310
                        print(path.name, answer.read().decode(), flush=True)
                except urllib.error.HTTPError as refusal:
                    print(path.name, refusal.code, flush=True)
        os.kill(os.getpid(), signal.SIGINT)

    serving._listening = listen_and_ask


def write_images(folder: Path, count: int = 24) -> None:
    rng = np.random.RandomState(0)
    for k, name in enumerate(("cat", "dog", "owl")):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.randint(0, 120, (24, 24 + i % 5, 3)) + np.array([130 * (k % 2), 60, 130 * (k // 2)])
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / name / f"{i}.png")


# A process


@dataclass
class Process:
    """A running job. Its standard output and its messages are files."""

    pid: int
    log: Path
    code: int | None = None

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, seconds: float = PATIENCE) -> int | None:
        """The exit status; None if the process still runs then."""
        end = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        return self.code

    def kill(self) -> bool:
        """Ends it with SIGKILL. Whether it was still running."""
        if self.poll() is not None:
            return False
        os.kill(self.pid, signal.SIGKILL)
        self.wait()
        return self.code == -signal.SIGKILL

    @property
    def said(self) -> str:
        return self.log.with_suffix(".err").read_text(errors="replace")

    @property
    def printed(self) -> str:
        return self.log.with_suffix(".out").read_text(errors="replace")


@dataclass(frozen=True)
class Surroundings:
    """How a job is started. kill_at: the number of the file operation at which it kills itself. powerless:
    without root's right to read and write every file."""

    env: dict[str, str]
    kill_at: int | None = None
    powerless: bool = False


def start(command: Sequence[str], log: Path, around: Surroundings, images: Path | None = None) -> Process:
    """images: those that a server is asked for."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return Process(pid, log)
    code, operations = 1, FileOperations(around.env["CHAOS"], around.kill_at)
    try:
        os.setsid()  # what it leaves behind is found by its session
        for descriptor, suffix in ((1, ".out"), (2, ".err")):
            to = os.open(log.with_suffix(suffix), os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
            os.dup2(to, descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(around.env)
        tempfile.tempdir = None
        trainer._CHECKPOINT_SECONDS = 0.0
        results.images_per_s = lambda run, images: speed.images_per_s(run, images, 0.01)
        results.rates_in_turns = lambda runs, images: speed.rates_in_turns(
            runs, images, rounds=1, seconds=0.01
        )
        if around.powerless:
            drop_rights()
        if images is not None:
            ask_server(images)
        sys.addaudithook(operations.look)
        cli.main(list(command))
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        operations.kill_at = None
        with contextlib.suppress(OSError):
            log.with_suffix(".count").write_text(str(operations.count))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@dataclass
class FileOperations:
    """Counts what changes files under `root`, and kills its own process at number `kill_at`."""

    root: str
    kill_at: int | None
    count: int = 0

    def look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            changes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        else:
            changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate")
        if changes and str(arguments[0]).startswith(self.root):
            self.count += 1
            if self.count == self.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)


def drop_rights() -> None:
    """Of root: files without permissions cannot be read or written any more. The user id stays."""
    if os.geteuid() == 0:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of the kernel's interface, this process
        none = (ctypes.c_uint32 * 6)()
        if ctypes.CDLL(None, use_errno=True).capset(header, none):
            raise OSError(ctypes.get_errno(), "capset")


# What must hold afterwards


def incomplete_files(folder: Path) -> list[str]:
    """Files under their final names that cannot be read to the end."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.suffix == ".part" or any(parent.name.startswith("tmp") for parent in path.parents):
            continue
        try:
            read_whole(path)
        except Exception as error:
            found.append(f"{path.relative_to(folder)}: {type(error).__name__}: {error}"[:200])
    return found


def read_whole(path: Path) -> None:
    """Raises an exception if a file is cut short."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - not a dict
                opened.get_tensor(key)
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".csv":
        rows = list(csv.reader(path.read_text().splitlines()))
        assert len({len(row) for row in rows}) == 1 and path.read_bytes().endswith(b"\n"), "cut short"
    elif path.suffix == ".html":
        assert path.read_text().rstrip().endswith("</html>"), "cut short"
    elif path.suffix == ".onnx":
        import onnx

        onnx.checker.check_model(onnx.load(path))
    elif path.suffix == ".xml":
        import openvino

        openvino.Core().read_model(path)
    elif path.suffix == ".pixels":
        facts = path.with_suffix(".json")
        if facts.exists():
            size, images = path.stat().st_size, len(json.loads(facts.read_text())["aspects"])
            assert size and size % (3 * images) == 0, "cut short"


def outputs(stage: Stage, job: Job, process: Process) -> dict[str, str]:
    """What a finished job leaves, by name, as digests; without timings."""
    found = {}
    if job.name in ("predict", "eval", "check", "serve"):
        found["printed"] = process.printed.replace(str(stage.images), "IMAGES").replace(str(stage.run), "RUN")
    for path in sorted(p for p in stage.out.rglob("*") if p.is_file()):
        name = path.relative_to(stage.out).as_posix()
        if path.name == "metrics.jsonl":
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = str([(line["epoch"], line.get("val"), line.get("val_ema")) for line in lines])
        elif ("checkpoints" not in path.parts and path.suffix in (
            ".safetensors", ".onnx", ".bin", ".csv", ".tar", ".png", ".gz", ".npz",
        )) or path.name in ("split.json", "skipped.json", "plan.json", "analysis.json"):  # fmt: skip
            found[name] = digest_of(path, stage)
    return found


def digest_of(path: Path, stage: Stage) -> str:
    """Of a file's content: safetensors writes metadata in any order, and a report names the run's folder."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a dict
            return digest(tensors, json.dumps(opened.metadata(), sort_keys=True))
    content = path.read_bytes().replace(bytes(stage.run), b"RUN").replace(bytes(stage.images), b"IMAGES")
    return hashlib.sha256(content).hexdigest()


def sentence_problem(process: Process) -> str | None:
    """What is wrong with how a job that did not finish ended; None if it said so in one sentence."""
    if process.code is None:
        return f"hangs: still running after {PATIENCE:.0f} s"
    if process.code < 0:
        return f"ended by signal {-process.code}"
    if "Traceback" in process.said:
        return "a traceback"
    lines = [line for line in process.said.splitlines() if line.strip()]
    # By the parser of the command line, in a box below the usage.
    refused = "Invalid value for" in process.said and lines[0].startswith("Usage: ")
    sentence = refused or any(line.startswith(("deitkit: ", "Interrupted")) for line in lines[-1:])
    if process.code and not sentence:
        return f"exit status {process.code} without a sentence"
    return None


def left_behind(sessions: set[int], folder: Path) -> list[str]:
    """Processes of the jobs' sessions, locks that are held, and shared memory."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) in sessions and fields[0] != "Z":
                found.append(f"process {stat.parent.name}")
    with contextlib.suppress(ImportError):
        import fcntl

        for lock in folder.rglob("lock"):
            with open(lock, "ab") as opened:
                try:
                    fcntl.lockf(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    found.append(f"lock {lock}")
    if PRIVATE_MOUNTS:
        found += [f"shared memory {path.name}" for path in Path("/dev/shm").iterdir()]
    return found


PRIVATE_MOUNTS = False


def own_mounts() -> bool:
    """As root: mounts from now on are this process's alone, /dev/shm is empty. Whether that worked."""
    CLONE_NEWNS = 0x20000
    if not sys.platform.startswith("linux") or os.geteuid() or ctypes.CDLL(None).unshare(CLONE_NEWNS):
        return False
    steps = ["mount --make-rprivate /", "mount -t tmpfs -o size=64m tmpfs /dev/shm"]
    return all(subprocess.run(step.split(), capture_output=True).returncode == 0 for step in steps)


# A case


@dataclass
class Undisturbed:
    """A job that nothing disturbed: what came out, how long it took, how many file operations it made."""

    outputs: dict[str, str]
    seconds: float
    operations: int
    bytes: int


@dataclass
class Case:
    """One job, one disturbance. `findings` are what must not happen."""

    number: int
    job: Job
    stage: Stage
    folder: Path
    rng: random.Random
    known: Undisturbed
    kills: int = 0
    starts: int = 0
    ending: str = ""
    findings: list[str] = field(default_factory=list)
    sessions: set[int] = field(default_factory=set)

    def start(self, *, again: bool = False, out: Path | None = None, **around: Any) -> Process:
        self.starts += 1
        stage = self.stage if out is None else replace(self.stage, out=out)
        stage.out.mkdir(parents=True, exist_ok=True)
        (self.folder / "tmp").mkdir(exist_ok=True)
        command = self.job.command(stage) + (list(self.job.again) if again else [])
        env = {
            "DEITKIT_CACHE": str(stage.cache),
            "CHAOS": str(self.folder),
            "TMPDIR": str(self.folder / "tmp"),
        }
        asked = stage.images if self.job.name == "serve" else None
        log = self.folder / "logs" / str(self.starts)
        process = start(command, log, Surroundings(env, **around), asked)
        self.sessions.add(process.pid)
        return process

    def problem(self, process: Process) -> str | None:
        """As `sentence_problem`; a job that says with its exit status that it left images out did well."""
        return None if process.code and process.code == self.job.partial else sentence_problem(process)

    def moment(self) -> float:
        return self.rng.uniform(0, 1) * self.known.seconds

    def fail(self, what: str, process: Process | None = None) -> None:
        said = process.said.strip()[-1500:] if process is not None else ""
        self.findings.append(f"{what}\n{said}".strip())

    def killed_once(self, again: bool, share: tuple[float, float] = (0.0, 1.0)) -> Process:
        """A process that was killed at a random moment or file operation, unless it ended before."""
        at = self.rng.uniform(*share)
        if self.rng.random() < 0.5:
            process = self.start(again=again, kill_at=max(1, round(at * self.known.operations)))
            process.wait()
        else:
            process = self.start(again=again)
            time.sleep(at * self.known.seconds)
            process.kill()
        if process.code == -signal.SIGKILL:
            self.kills += 1
        elif problem := self.problem(process):
            self.fail(f"before it was killed: {problem}", process)
        self.look_at_files("after a kill")
        return process

    def look_at_files(self, when: str) -> None:
        for folder in (self.stage.out, self.stage.cache):
            for problem in incomplete_files(folder):
                self.fail(f"incomplete file {when}: {problem}")

    def finish(self, process: Process | None = None) -> None:
        """The job, resumed, ends as the undisturbed one, or refuses."""
        process = process or self.start(again=self.begun)
        process.wait()
        if process.code is None:
            process.kill()
            process.code = None
        if problem := self.problem(process):
            self.fail(problem, process)
            self.ending = "failed"
        elif process.code:
            self.ending = f"refused: {process.said.strip().splitlines()[-1]}"
        else:
            self.ending = "finished"
            self.compare(self.stage, process)

    @property
    def begun(self) -> bool:
        """Whether there is a run to resume, as its user sees it."""
        return bool(self.job.again) and any(self.stage.out.iterdir())

    def compare(self, stage: Stage, process: Process) -> None:
        found = outputs(stage, self.job, process)
        different = [name for name, digest in self.known.outputs.items() if found.get(name) != digest]
        if different:
            self.fail(f"other bytes than undisturbed: {', '.join(different)}", process)
        self.look_at_files("at the end")


# Disturbances


def kill(case: Case) -> None:
    """Kills with -9, a few times, and then lets it finish."""
    for _ in range(case.rng.randint(2, KILLS_IN_A_CASE)):
        if case.killed_once(case.begun).code == 0:
            break
    if case.job.again and (case.stage.out / "run" / "results.json").exists():
        return case.finish()  # finished already: it says so
    case.finish()
    # What a killed `teacher fit` or `convert` has finished is not written over, nor what `explain` began.
    complete = any((case.stage.out / name).exists() for name in ("fitted/teacher.json", "timm", "explained"))
    if case.ending.startswith("refused") and not complete:
        case.fail(f"not resumed after a kill: {case.ending}")


def pause(case: Case) -> None:
    """Stops and continues the process."""
    process = case.start()
    for _ in range(case.rng.randint(1, 6)):
        time.sleep(case.rng.uniform(0, case.known.seconds / 4))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(case.rng.uniform(0, 0.3))
            os.kill(process.pid, signal.SIGCONT)
    case.finish(process)


def terminate(case: Case) -> None:
    """Asks it to end with SIGINT, SIGTERM or SIGHUP."""
    process = case.start()
    time.sleep(case.moment())
    if process.poll() is None:
        os.kill(process.pid, case.rng.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP]))
    process.wait()
    if case.job.again and process.code not in (0, 130, -signal.SIGINT, -signal.SIGTERM, -signal.SIGHUP):
        case.fail(f"exit status {process.code} on a signal", process)
    case.look_at_files("after a signal")
    if process.code or case.job.name == "serve":  # which ends well without having been asked for all
        case.finish()
    else:
        case.finish(process)


def full_disk(case: Case) -> None:
    """Gives it a disk that fills up, and space again afterwards."""
    if not PRIVATE_MOUNTS:
        case.ending = "skipped: only root may mount a small disk"
        return
    disk = case.folder / "disk"
    disk.mkdir()
    where = case.rng.choice(["out", "cache", "both"])
    size = max(8192, int(case.rng.uniform(0.02, 0.9) * case.known.bytes))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=True)
    try:
        changes = {name: disk / name for name in ("out", "cache") if where in (name, "both")}
        case.stage = replace(case.stage, **changes)
        first = case.start()
        first.wait()
        if problem := case.problem(first):
            case.fail(f"on a full disk ({where}): {problem}", first)
        elif first.code and not any(word in first.said for word in ("space", "free", "full", "No space")):
            case.fail(f"on a full disk ({where}): does not say so", first)
        case.look_at_files("on a full disk")
        subprocess.run(["mount", "-o", "remount,size=512m", str(disk)], check=True)
        if first.code:
            case.finish()
            if case.ending.startswith("refused") and not (case.stage.out / "timm").exists():
                case.fail(f"not resumed once there was space: {case.ending}", None)
        else:
            case.finish(first)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def own_copy(case: Case, *names: str) -> None:
    """Gives the case its own copies of inputs, with their times of change."""
    for name in names:
        copy = case.folder / "in" / name
        if not copy.exists():
            shutil.copytree(getattr(case.stage, name), copy)
        case.stage = replace(case.stage, **{name: copy})


def damage(case: Case) -> None:
    """Truncates or changes bytes of what a killed job left, and of its inputs."""
    own_copy(case, *[name for name in case.job.reads if name in ("labels", "run")], "cache")
    case.killed_once(again=False, share=(0.3, 1.0))
    suffixes = (".safetensors", ".pixels")
    places = [case.stage.cache, case.stage.out]
    places += [case.stage.labels] if "labels" in case.job.reads else []
    files = [p for place in places for p in sorted(place.rglob("*")) if p.is_file() and p.suffix != ".part"]
    # Weights and a teacher in a run carry no checksum: a changed byte there is another model.
    sealed = [
        p
        for p in files
        if p.suffix in suffixes
        and (p.suffix == ".pixels" or "checkpoints" in p.parts or p.is_relative_to(case.stage.labels))
    ]
    sealed += [p for p in files if p.parent == case.stage.cache and p.suffix == ".json"]
    sealed += [p for p in files if case.job.name == "label" and p.name.startswith("epoch-")]
    cut = [p for p in files if p.suffix in (*suffixes, ".json", ".jsonl", ".csv")]
    for _ in range(case.rng.randint(1, 3)):
        flips = sealed and case.rng.random() < 0.7
        chosen = case.rng.choice(sealed if flips else cut) if cut or sealed else None
        if chosen is None or chosen.stat().st_size == 0:
            continue
        content = bytearray(chosen.read_bytes())
        if flips and case.rng.random() < 0.7:
            for _ in range(case.rng.randint(1, 4)):
                content[case.rng.randrange(len(content))] ^= 1 << case.rng.randrange(8)
        else:
            del content[case.rng.randrange(len(content)) :]
        chosen.write_bytes(content)
    damaged_inputs = "labels" in case.job.reads
    case.finish()
    if case.ending == "finished" or damaged_inputs:
        return


def unreadable(case: Case) -> None:
    """Takes away the right to read or write something, and gives it back."""
    own_copy(case, *case.job.reads, "cache")
    if case.rng.random() < 0.5:
        case.killed_once(again=False)
    folders = [getattr(case.stage, name) for name in (*case.job.reads, "cache", "out")]
    case.stage.out.mkdir(parents=True, exist_ok=True)
    paths = [p for folder in folders for p in (folder, *sorted(folder.rglob("*"))) if p.exists()]
    taken = case.rng.sample(paths, min(len(paths), case.rng.randint(1, 3)))
    modes = {path: path.stat().st_mode for path in taken}
    for path in taken:
        path.chmod(0o500 if path.is_dir() and case.rng.random() < 0.5 else 0)
    try:
        process = case.start(again=bool(case.job.again) and (case.stage.out / "run").exists(), powerless=True)
        process.wait()
    finally:
        for path in sorted(taken):
            path.chmod(modes[path])
    if problem := case.problem(process):
        shown = ", ".join(str(path.relative_to(case.folder)) for path in taken)
        case.fail(f"without the right to {shown}: {problem}", process)
    case.look_at_files("without rights")
    if process.code:
        case.finish()
    else:
        case.ending = "finished without it"


def changing_images(case: Case) -> None:
    """Removes, replaces and cuts images while they are read, and puts them back."""
    own_copy(case, "images")
    case.stage = replace(case.stage, cache=case.folder / "cache")
    kept = case.folder / "kept"
    shutil.copytree(case.stage.images, kept)
    process = case.start()
    images = sorted(case.stage.images.rglob("*.png"))
    time.sleep(case.rng.uniform(0, 0.5) * case.known.seconds)
    for path in case.rng.sample(images, case.rng.randint(1, 12)):
        how = case.rng.choice(["remove", "replace", "cut", "grow"])
        if how == "remove":
            path.unlink(missing_ok=True)
        elif how == "replace":
            Image.new("RGB", (30, 30), (255, 0, 0)).save(path)
        elif how == "cut" and path.exists():
            os.truncate(path, case.rng.randrange(max(1, path.stat().st_size)))
        elif path.exists():
            with open(path, "ab") as opened:
                opened.write(b"more" * 100)
        time.sleep(case.rng.uniform(0, 0.02))
    process.wait()
    if problem := case.problem(process):
        case.fail(f"images changed: {problem}", process)
    case.look_at_files("after images changed")
    if process.code not in (None, 0, 1):
        shutil.rmtree(case.stage.images)
        shutil.copytree(kept, case.stage.images)
        case.finish()
    else:
        case.ending = "finished on the images that it found"


def two_jobs(case: Case) -> None:
    """Two jobs write to one folder at once."""
    first = case.start()
    time.sleep(case.rng.choice([0.0, case.rng.uniform(0, 0.2), case.moment()]))
    second = case.start(again=case.begun and case.rng.random() < 0.7)
    for process in (first, second):
        process.wait()
        if problem := case.problem(process):
            case.fail(f"one of two jobs: {problem}", process)
    if first.code and second.code:
        case.finish()
    else:
        case.finish(first if first.code == 0 else second)


def many_on_one_cache(case: Case) -> None:
    """Ten jobs decode the same images into one empty cache."""
    case.stage = replace(case.stage, cache=case.folder / "cache")
    case.stage.cache.mkdir()
    outs = [case.folder / "outs" / str(i) for i in range(JOBS_ON_ONE_CACHE)]
    processes = [case.start(out=out) for out in outs]
    for process, out in zip(processes, outs, strict=True):
        process.wait(PATIENCE * 3)
        if process.code != 0:
            case.fail(f"one of many on a cache: {case.problem(process) or 'refused'}", process)
        else:
            case.compare(replace(case.stage, out=out), process)
    case.ending = "finished"


JOBS_ON_ONE_CACHE = 10
DISTURBANCES: dict[str, tuple[Callable[[Case], None], float]] = {  # and how often, beside each other
    "kill -9": (kill, 8),
    "pause": (pause, 0.5),
    "signal": (terminate, 1),
    "full disk": (full_disk, 1.5),
    "damage": (damage, 2.5),
    "no rights": (unreadable, 1.5),
    "images change": (changing_images, 1),
    "two jobs": (two_jobs, 1),
    "ten on a cache": (many_on_one_cache, 0.1),
}
READERS = (
    "export onnx",
    "export openvino",
    "export web",
    "explain",
    "convert",
    "predict",
    "eval",
    "analyze",
    "check",
    "serve",
)  # no folder of their own


def choose(number: int, rng: random.Random) -> tuple[Job, str]:
    """Jobs take turns; the disturbance is drawn."""
    job = JOBS[number % len(JOBS)]
    weights = {name: weight for name, (_, weight) in DISTURBANCES.items()}
    if job.name in READERS:
        weights |= {"two jobs": 0.3, "ten on a cache": 0.0}
        if job.name in ("predict", "eval", "serve"):
            weights["two jobs"] = 0.0
    return job, rng.choices(list(weights), list(weights.values()))[0]


# The harness


class Harness:
    """The stage with its undisturbed jobs, and the cases on it."""

    def __init__(self, folder: Path, seed: int, jobs: Sequence[str] = ()):
        self.folder, self.seed = folder, seed
        self.jobs = [job for job in JOBS if not jobs or job.name in jobs]
        self.known: dict[str, Undisturbed] = {}
        self.unsteady: dict[str, list[str]] = {}
        self.stage = self._set_up()
        for job in self.jobs:
            self._undisturbed(job)

    def _set_up(self) -> Stage:
        write_images(self.folder / "images")
        torch.manual_seed(0)
        teacher = self.folder / "teacher.safetensors"
        save_file(timm.create_model("test_efficientnet").state_dict(), teacher)
        _stand_in_runtime(self.folder / "runtime")
        names = ("images", "runtime", "labels", "run", "cache")
        paths = {name: self.folder / name for name in names}
        stage = Stage(**paths, teacher=teacher, out=self.folder / "out")
        for job in JOBS:
            if job.name == "label":
                self._quietly(job, replace(stage, out=self.folder))
            if job.name == "train, teacher and baseline":
                self._quietly(job, replace(stage, out=self.folder))
        return stage

    def _quietly(self, job: Job, stage: Stage) -> None:
        env = {"DEITKIT_CACHE": str(stage.cache), "CHAOS": str(self.folder)}
        process = start(job.command(stage), self.folder / "logs" / job.name, Surroundings(env))
        if process.wait() != 0:
            raise SystemExit(f"{job.name} fails undisturbed:\n{process.said}")

    def _case(self, number: int, job: Job, name: str, rng: random.Random) -> Case:
        folder = self.folder / name
        folder.mkdir()
        stage = replace(self.stage, out=folder / "out")
        return Case(number, job, stage, folder, rng, self.known.get(job.name) or Undisturbed({}, 0, 0, 0))

    def _undisturbed(self, job: Job) -> None:
        """Does a job twice; what differs is not compared later."""
        found = []
        for i in range(2):
            case = self._case(-1, job, f"undisturbed-{job.name}-{i}", random.Random(0))
            began = time.monotonic()
            process = case.start()
            if process.wait() != 0:
                raise SystemExit(f"{job.name} fails undisturbed:\n{process.said}")
            seconds = time.monotonic() - began
            operations = int((case.folder / "logs" / "1.count").read_text())
            size = sum(p.stat().st_size for p in case.stage.out.rglob("*") if p.is_file())
            size += sum(p.stat().st_size for p in case.stage.cache.rglob("*") if p.is_file())
            found.append(Undisturbed(outputs(case.stage, job, process), seconds, operations, size))
        first, second = found
        same = {name: digest for name, digest in second.outputs.items() if first.outputs.get(name) == digest}
        self.unsteady[job.name] = sorted(second.outputs.keys() - same.keys())
        self.known[job.name] = replace(second, outputs=same)

    def run(self, number: int, wanted: Sequence[str] = ()) -> tuple[Case, str]:
        rng = random.Random(f"{self.seed} {number}")
        job, disturbance = choose(number, rng)
        if self.jobs != JOBS:
            job = self.jobs[number % len(self.jobs)]
        if wanted:
            disturbance = wanted[number % len(wanted)]
        case = self._case(number, job, f"case-{number}", rng)
        if rng.random() < 0.3:  # images are decoded anew
            case.stage = replace(case.stage, cache=case.folder / "own cache")
            case.stage.cache.mkdir()
        case.stage.out.mkdir(parents=True, exist_ok=True)
        DISTURBANCES[disturbance][0](case)
        for problem in left_behind(case.sessions, case.folder):
            case.fail(f"left behind: {problem}")
        return case, disturbance


def cases(harness: Harness, arguments: argparse.Namespace) -> Iterator[tuple[Case, str]]:
    end = time.monotonic() + 60 * arguments.minutes
    number = arguments.first
    while time.monotonic() < end if arguments.cases is None else number < arguments.first + arguments.cases:
        yield harness.run(number, arguments.disturbances)
        number += 1


def describe(seconds: float, harness: Harness, done: list[dict[str, Any]]) -> dict[str, Any]:
    from provenance import provenance

    counts: dict[str, Counter[str]] = {}
    for row in done:
        ending = row["ending"].partition(":")[0]
        both = (("by_verb", row["job"]), ("by_disturbance", row["disturbance"]))
        for key, value in both:
            counter = counts.setdefault(f"{key}/{value}", Counter())
            counter.update({"cases": 1, "kills": row["kills"], ending: 1, "findings": len(row["findings"])})
    return {
        "benchmark": "chaos",
        **provenance(timm),
        "seed": harness.seed,
        "seconds": round(seconds),
        "cases": len(done),
        "kills": sum(row["kills"] for row in done),
        "starts": sum(row["starts"] for row in done),
        "small_disk": PRIVATE_MOUNTS,
        "not_compared": {name: files for name, files in harness.unsteady.items() if files},
        "counts": {key: dict(counter) for key, counter in sorted(counts.items())},
        "refusals": sorted({row["ending"] for row in done if row["ending"].startswith("refused")})[:40],
        "findings": [row for row in done if row["findings"]],
    }


def main() -> None:
    global PRIVATE_MOUNTS
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--cases", type=int, help="so many cases instead of so many minutes")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--case", type=int, help="one case")
    parser.add_argument("--jobs", nargs="*", default=[], choices=[job.name for job in JOBS])
    parser.add_argument("--disturbances", nargs="*", default=[], choices=list(DISTURBANCES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="keep the folders of all cases")
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    if arguments.case is not None:
        arguments.first, arguments.cases = arguments.case, 1
    PRIVATE_MOUNTS = own_mounts()
    import_libraries()
    torch.set_num_threads(1)
    folder, done, began = Path(tempfile.mkdtemp(prefix="chaos-")), [], time.monotonic()
    try:
        harness = Harness(folder, arguments.seed, arguments.jobs)
        for case, disturbance in cases(harness, arguments):
            row = {
                "case": case.number,
                "job": case.job.name,
                "disturbance": disturbance,
                "kills": case.kills,
                "starts": case.starts,
                "ending": case.ending.replace(str(case.folder), "CASE").replace(str(folder), "STAGE"),
                "findings": [text.replace(str(folder), "STAGE") for text in case.findings],
            }
            done.append(row)
            print(
                json.dumps(row)
                if row["findings"]
                else f"{case.number} {case.job.name}, {disturbance}: {case.kills} kills, {row['ending']}",
                flush=True,
            )
            if not arguments.keep:
                shutil.rmtree(case.folder, ignore_errors=True)
            if arguments.out is not None:
                write(arguments.out, describe(time.monotonic() - began, harness, done))
    finally:
        if arguments.keep:
            print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    found = sum(len(row["findings"]) for row in done)
    print(f"{len(done)} cases, {sum(row['kills'] for row in done)} kills, {found} findings")
    raise SystemExit(found > 0)


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
