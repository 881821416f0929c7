"""No verb opens a connection or looks up a name that the user did not ask for."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from deitkit.errors import DeitkitError
from deitkit.preprocessing import InputSize
from deitkit.teachers.spec import open_member, parse

from .conftest import TINY, VERBS, write_images
from .teachers.models import timm_file

# Runs at the start of each Python process below: notes every attempt to reach a network, and refuses it.
GUARD = """
import os, sys

def refuse(event, args):
    if event not in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        return
    target = args[1] if event in ("socket.connect", "socket.sendto") else args[0]
    if event == "socket.connect" and isinstance(target, (str, bytes)):
        return  # a Unix socket, between processes of this machine
    with open(os.environ["NETWORK_LOG"], "a") as log:
        log.write(f"{event} {target}\\n")
    raise OSError("no network in this test")

sys.addaudithook(refuse)
"""


@pytest.fixture
def attempts(tmp_path):
    """Runs Python code without a network; returns what it tried to reach."""
    (tmp_path / "guard").mkdir()
    (tmp_path / "guard" / "sitecustomize.py").write_text(GUARD)
    log = tmp_path / "network.log"
    own = {
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "guard"), *sys.path]),
        "NETWORK_LOG": str(log),
        "HOME": str(tmp_path),  # without OpenVINO's file of consent
    }
    # OpenVINO sends nothing under continuous integration, which would hide a mistake.
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "TF_BUILD", "JENKINS_URL")} | own

    def run(code: str, *arguments: str) -> list[str]:
        log.write_text("")
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return log.read_text().splitlines()

    return run


def test_the_guard_sees_attempts(attempts):
    """Also those of OpenVINO's telemetry, if it is not turned off."""
    lookup = "import socket\ntry: socket.create_connection(('example.org', 80))\nexcept OSError: pass"
    assert attempts(lookup) == ["socket.getaddrinfo example.org"]
    pytest.importorskip("openvino_telemetry")
    convert = (
        "import openvino, torch\n"
        "openvino.convert_model(torch.nn.Linear(2, 2), example_input=torch.zeros(1, 2))\n"
    )
    assert any("google-analytics" in attempt for attempt in attempts(convert))


def test_verbs_stay_offline(tmp_path, attempts):
    pytest.importorskip("openvino")
    data, run = str(write_images(tmp_path / "images")), str(tmp_path / "run")
    teacher = f"--teacher={timm_file(tmp_path)}"
    student = ["--image-size=16", "--batch-size=8", "--device=cpu", "--set=teacher.image_size=32"]
    backends = [f"--set=teacher.backend={name}" for name in ("openvino", "onnxruntime")]
    image = f"{data}/cat/0.png"
    train = [teacher, *student, "--patch-size=8", "--epochs=1", "--init=none"]
    verbs = [
        ["train", data, "--out", run, *train, backends[0]],
        ["predict", run, image],
        ["predict", f"{run}/teacher", image],
        ["eval", run, data],
        ["export", run, "--to=openvino", "--out", f"{tmp_path}/student.xml"],
        ["export", run, "--to=onnx", "--out", f"{tmp_path}/student.onnx"],
        ["label", data, "--out", f"{tmp_path}/labels", "--epochs=1", teacher, *student, backends[1]],
        ["teacher", "eval", f"{run}/teacher", data, "--device=cpu"],
        ["teacher", "list"],
        ["explain", run, image, "--out", f"{tmp_path}/why", "--model=student"],
        ["report", run],
        ["report", run, run, "--json", "--model=student"],
        ["card", run],
        ["push", run, "me/run", "--license=mit", "--data-license=mit", "--dry-run", "--model=student"],
    ]
    assert attempts(VERBS, json.dumps(verbs)) == []


@pytest.mark.parametrize("tracker", ["mlflow", "wandb"])
def test_trackers_stay_offline(tmp_path, attempts, tracker):
    pytest.importorskip(tracker, reason=f'needs pip install "deitkit[{tracker}]"')
    data = str(write_images(tmp_path / "images"))
    verbs = [["train", data, "--out", str(tmp_path / "run"), *TINY, "--init=none", "--log", tracker]]
    found = attempts(VERBS, json.dumps(verbs))
    assert [
        attempt for attempt in found if "127.0.0.1" not in attempt
    ] == []  # wandb has a process of its own
    assert list((tmp_path / "run").rglob("*.wandb" if tracker == "wandb" else "meta.yaml"))


@pytest.mark.parametrize("spec", ["hf:owner/name", "timm:resnet18"])
def test_a_hub_that_cannot_be_reached_costs_one_attempt_and_one_sentence(spec, monkeypatch, caplog, capfd):
    tried = []

    def unreachable(address, **more):
        tried.append(address)
        raise OSError("no network")

    monkeypatch.setattr("socket.create_connection", unreachable)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("waited to try again"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: "/nonexistent")
    with pytest.raises(DeitkitError, match="not in the local cache, and the hub cannot be reached"):
        open_member(parse(spec)[0], InputSize(32))
    assert tried == [("huggingface.co", 443)]
    assert not caplog.records and "".join(capfd.readouterr()) == ""


def test_what_the_user_allowed_stays_allowed():
    """The switches are defaults: a value in the environment wins."""
    code = "import deitkit, os; print(os.environ['DO_NOT_TRACK'], os.environ['HF_HUB_DISABLE_TELEMETRY'])"
    environment = {**os.environ, "HF_HUB_DISABLE_TELEMETRY": "0"}
    environment.pop("DO_NOT_TRACK", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["1", "0"], done.stderr
