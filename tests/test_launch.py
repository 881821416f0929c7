"""The examples of schedulers: their syntax, what the scheduler requires, and a command that deitkit takes."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from safetensors.torch import load_file

from deitkit import recipes
from deitkit.cli import SHARED, app, main

from .conftest import TINY, write_images

yaml = pytest.importorskip("yaml")
LAUNCH = Path(__file__).parents[1] / "examples" / "launch"


def words_of(script: str) -> list[list[str]]:
    """Each command of a shell script, continued lines joined."""
    joined = re.sub(r"\\\n\s*", " ", script)
    return [shlex.split(line, comments=True) for line in joined.splitlines() if line.strip()]


def torchrun_of(commands: list[list[str]]) -> list[str]:
    [found] = [words[words.index("torchrun") :] for words in commands if "torchrun" in words]
    return found[:-1] if found[-1] == "&" else found


def check_command(words: list[str]) -> None:
    """torchrun's own options, then a verb that shares its work, with options that it has."""
    run = pytest.importorskip("torch.distributed.run")
    at = words.index("-m")
    options, script = words[1:at], words[at:]
    assert script[:2] == ["-m", "deitkit"]
    numeric = [re.sub(r'=("?)\$\{?\w+\}?("?)$', "=1", option) for option in options]
    run.get_args_parser().parse_args([*numeric, "script"])  # raises SystemExit for an unknown option
    assert script[2] in SHARED
    command = typer.main.get_command(app).commands[script[2]]
    known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    given = [word.partition("=")[0] for word in script[3:] if word.startswith("--")]
    assert set(given) <= known
    assert "--resume" in given  # a job that is queued again goes on
    text = " ".join(script).replace("=", " ").split()
    recipes.get(text[text.index("--recipe") + 1])


def test_slurm():
    script = LAUNCH / "slurm.sbatch"
    text = script.read_text()
    bash = shutil.which("bash") or pytest.skip("bash is not installed")
    done = subprocess.run([bash, "-n", str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", text, re.MULTILINE))
    assert {"nodes", "ntasks-per-node", "gpus-per-node", "time", "signal", "requeue"} <= set(options)
    assert options["ntasks-per-node"] == "1"  # one torchrun starts the processes of a host
    words = torchrun_of(words_of(text))
    assert f"--nproc-per-node={options['gpus-per-node']}" in words
    check_command(words)


@pytest.mark.parametrize("status", [0, 3])
def test_slurm_stops_saves_and_is_queued_again(tmp_path, status):
    """The script itself, with made-up srun and scontrol: USR1 reaches torchrun as SIGTERM."""
    bash = shutil.which("bash") or pytest.skip("bash is not installed")
    (tmp_path / "srun").write_text(
        f"#!{bash}\nend() {{ echo saved >> {tmp_path}/log; exit {status}; }}\n"
        f'trap end TERM\nkill -USR1 "$PPID"\nwhile :; do sleep 0.05; done\n'
    )
    (tmp_path / "scontrol").write_text(f'#!{bash}\necho "$@" >> {tmp_path}/log\necho first-host\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    environment |= {"SLURM_JOB_NODELIST": "h[1-2]", "SLURM_JOB_ID": "7", "SLURM_NNODES": "2"}
    script = [bash, str(LAUNCH / "slurm.sbatch")]
    subprocess.run(script, env=environment, timeout=60, capture_output=True)
    log = (tmp_path / "log").read_text().splitlines()
    assert log == ["show hostnames h[1-2]", "saved", "requeue 7"]


def test_kubernetes():
    job: dict[str, Any] = yaml.safe_load((LAUNCH / "pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    policy, spec = job["spec"]["elasticPolicy"], job["spec"]["pytorchReplicaSpecs"]["Worker"]
    assert policy["minReplicas"] <= spec["replicas"] <= policy["maxReplicas"]
    assert policy["rdzvBackend"] == "c10d"
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    assert container["name"] == "pytorch"
    assert {v["name"] for v in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    assert f"--nproc-per-node={container['resources']['limits']['nvidia.com/gpu']}" in container["command"]
    check_command(container["command"])


def test_skypilot():
    task: dict[str, Any] = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert set(task) <= {"name", "num_nodes", "resources", "file_mounts", "setup", "run"}
    assert task["num_nodes"] > 1
    assert re.fullmatch(r"\w+:\d+", task["resources"]["accelerators"])
    words = torchrun_of(words_of(task["run"]))
    out = words[words.index("--out") + 1]
    assert any(out.startswith(f"{mount}/") for mount in task["file_mounts"])
    check_command(words)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ray(tmp_path, monkeypatch):
    """Two workers of a local cluster store the soft labels that one process stores, and train a student."""
    pytest.importorskip("ray.train.torch", reason="ray is not installed")
    data = write_images(tmp_path / "images", count=25)
    settings = ["teacher.image_size=32", "teacher.probe_views=1", "teacher.backend=pytorch"]
    label = [
        "label",
        str(data),
        "--image-size=16",
        "--epochs=3",
        "--device=cpu",
        *(f"--set={s}" for s in settings),
    ]
    on_ray = [sys.executable, str(LAUNCH / "on_ray.py"), f"--storage={tmp_path / 'ray'}", "2"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "RAY_USAGE_STATS_ENABLED": "0"}
    two, out = tmp_path / "two", tmp_path / "run"
    train = ["train", str(data), "--out", str(out), *TINY]
    for arguments in ([*label, "--out", str(two)], train):
        done = subprocess.run([*on_ray, *arguments], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-4000:]
    with pytest.raises(SystemExit):
        main([*label, "--out", str(tmp_path / "one")])
    stored = sorted(tmp_path.glob("one/epoch-*.safetensors"))
    assert len(stored) == 3
    for shard in stored:
        assert torch.equal(load_file(shard)["labels"], load_file(two / shard.name)["labels"])
    assert (out / "model.safetensors").exists()
