"""Files are data: no code runs that only a file names, whichever verb reads it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import deitkit
from deitkit import DeitkitError, classifier, cli
from deitkit.config import Config
from deitkit.errors import WeightsError
from deitkit.preprocessing import InputSize
from deitkit.run_folder import holds_teacher
from deitkit.teachers.saved import read_teacher
from deitkit.teachers.spec import open_member, parse

from .conftest import write_images
from .teachers.models import onnx_file

SIZES = ["--set=student.image_size=16", "--set=teacher.probe_views=1", "--batch-size=8", "--device=cpu"]
TRAIN = [*SIZES, "--patch-size=8", "--epochs=1", "--init=none"]
CODE = "python:tests.teachers.models:unnamed"
EVIL = "python:evil:teach"
# What a stranger would want to run: it leaves a mark as soon as it is imported.
MODULE = """
from pathlib import Path
Path(__file__).with_name("ran").touch()

def teach(views):
    import torch
    return torch.cat([views.mean((2, 3)), views.std((2, 3))], 1)
"""


@pytest.fixture(scope="module")
def stage(tmp_path_factory):
    """A run, a fitted teacher and soft labels, all of a python: teacher that the user named."""
    folder = tmp_path_factory.mktemp("trust")
    write_images(folder / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEITKIT_CACHE", str(folder / "cache"))
        patch.setattr("deitkit.training.run.write_report", lambda folder: None)
        teacher = f"--teacher={CODE}"
        for arguments in (
            ["train", folder / "images", "--out", folder / "run", teacher, *TRAIN],
            ["teacher", "fit", CODE, folder / "images", "--out", folder / "fitted", *SIZES[:2]],
            ["label", folder / "images", "--out", folder / "labels", "--epochs=1", teacher, *SIZES],
        ):
            assert call(*arguments) == 0
    return folder


def call(*arguments) -> int:
    """The exit status of a command."""
    with pytest.raises(SystemExit) as end:
        cli.main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


@pytest.fixture
def hostile(stage, tmp_path, monkeypatch):
    """Copies of the folders whose files name a module that lies in the current folder."""
    for name in ("run", "fitted", "labels"):
        shutil.copytree(stage / name, tmp_path / name)
    for path in tmp_path.rglob("*.json"):
        path.write_text(path.read_text().replace(CODE, EVIL))
    (tmp_path / "evil.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEITKIT_CACHE", str(stage / "cache"))
    monkeypatch.setattr(
        sys, "path", [entry for entry in sys.path if Path(entry or ".").resolve() != tmp_path]
    )
    yield tmp_path
    sys.modules.pop("evil", None)


def verbs(stage: Path, folder: Path) -> dict[str, list[object]]:
    images, image = stage / "images", stage / "images" / "cat" / "0.png"
    return {
        "predict": ["predict", folder / "run" / "teacher", image],
        "predict, fitted": ["predict", folder / "fitted", image],
        "teacher eval": ["teacher", "eval", folder / "run" / "teacher", images, "--device=cpu"],
        "train": ["train", images, "--out", folder / "new", "--teacher", folder / "fitted", *TRAIN],
        "label": [
            "label",
            images,
            "--out",
            folder / "new",
            "--epochs=1",
            "--teacher",
            folder / "fitted",
            *SIZES,
        ],
        "label again": ["label", images, "--out", folder / "labels", "--epochs=2", "--device=cpu"],
        "ensemble": [
            "train",
            images,
            "--out",
            folder / "new",
            "--teacher",
            f"{folder / 'fitted'},lite0",
            *TRAIN,
        ],
    }


@pytest.mark.parametrize("verb", verbs(Path(), Path()))
def test_code_of_a_file_is_refused_by_name(stage, hostile, capsys, verb):
    assert call(*verbs(stage, hostile)[verb]) == 2
    said = capsys.readouterr().err
    assert f"names the code {EVIL}" in said and f"--teacher {EVIL}" in said
    assert not (hostile / "ran").exists() and "evil" not in sys.modules


def test_a_resumed_run_refuses_code_of_its_files(stage, hostile, capsys):
    command = ["train", stage / "images", "--out", hostile / "run", "--resume", *TRAIN]
    assert call(*command, f"--teacher={CODE}") == 2  # the settings are others
    settings = hostile / "run" / "settings.json"
    settings.write_text(settings.read_text().replace(EVIL, CODE))
    assert call(*command, f"--teacher={CODE}") == 2  # teacher.json still names the stranger's
    assert f"names the code {EVIL}" in capsys.readouterr().err
    assert not (hostile / "ran").exists()


def test_an_analysis_leaves_such_a_teacher_out(stage, hostile):
    found = deitkit_analyze(hostile / "run", stage / "images")
    assert any("names the code" in note for note in found["notes"])
    assert not (hostile / "ran").exists()


def deitkit_analyze(run: Path, data: Path):
    from deitkit.report.analysis_run import analyze_run

    return analyze_run(run, data, model="student")


@pytest.mark.parametrize("name", ["teacher.json", "manifest.json"])
def test_a_card_in_the_root_of_a_run_changes_nothing(stage, hostile, name):
    """A run's student predicts, and its teacher is the one in RUN/teacher."""
    run = hostile / "run"
    before = [
        p.label
        for p in deitkit.load(run, device="cpu", model="student").predict(
            [stage / "images" / "dog" / "1.png"]
        )
    ]
    shutil.copy(run / "teacher" / "teacher.json", run / name)
    shutil.copy(run / "teacher" / "teacher.safetensors", run / "teacher.safetensors")
    assert not holds_teacher(run) and holds_teacher(run / "teacher")
    assert call("predict", run, stage / "images" / "dog" / "1.png", "--model=student") == 0
    assert call("predict", run, stage / "images" / "dog" / "1.png", "--model=teacher") == 2  # code, refused
    assert [
        p.label
        for p in deitkit.load(run, device="cpu", model="student").predict(
            [stage / "images" / "dog" / "1.png"]
        )
    ] == before
    assert not (hostile / "ran").exists()
    with pytest.raises(DeitkitError, match="holds no fitted teacher"):
        deitkit.load_teacher(run)


def test_the_same_spec_given_again_runs(stage, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DEITKIT_CACHE", str(stage / "cache"))
    monkeypatch.setattr("deitkit.training.run.write_report", lambda folder: None)
    images, image = stage / "images", stage / "images" / "cat" / "0.png"
    for name in ("run", "labels"):
        shutil.copytree(stage / name, tmp_path / name)
    allowed, given = f"--set=teacher.code={CODE}", f"--teacher={CODE}"
    assert call("predict", tmp_path / "run" / "teacher", image, f"--teacher-code={CODE}") == 0
    assert call("teacher", "eval", stage / "fitted", images, "--device=cpu", allowed) == 0
    assert call("label", images, "--out", tmp_path / "labels", "--epochs=2", "--device=cpu", given) == 0
    assert call("label", images, "--out", tmp_path / "labels", "--epochs=3", "--device=cpu", allowed) == 0
    new = ["train", images, "--out", tmp_path / "new", "--teacher", stage / "fitted", *TRAIN]
    assert call(*new, allowed) == 0
    other = "--set=teacher.code=python:tests.teachers.models:mean_colour"
    assert call(*new[:3], tmp_path / "newer", *new[4:], other) == 2
    (tmp_path / "run" / "results.json").unlink()
    assert call("train", images, "--out", tmp_path / "run", "--resume", given, *TRAIN) == 0
    assert "code" not in json.loads((tmp_path / "new" / "settings.json").read_text())["teacher"]


def test_files_cannot_set_what_lets_code_run():
    saved = Config().to_dict()
    assert not {"code", "trust_remote_code"} & saved["teacher"].keys()
    saved["teacher"] |= {"code": EVIL, "trust_remote_code": True}
    assert (Config.from_dict(saved).teacher.code, Config.from_dict(saved).teacher.trust_remote_code) == (
        None,
        False,
    )
    assert Config().override({"teacher.trust_remote_code": "true"}).teacher.trust_remote_code


def test_a_study_hands_on_what_its_command_allows():
    from deitkit.study.plan import changed_settings

    allowed = {"teacher.code": CODE, "teacher.trust_remote_code": True}
    assert changed_settings(Config().override(allowed)) == allowed
    assert changed_settings(Config()) == {}


def model_with_code(folder: Path) -> Path:
    """A folder of transformers whose configuration names code beside it."""
    from .teachers.test_sources import saved_by_transformers

    saved_by_transformers("vit", folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "stranger", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(MODULE)
    return folder


def test_code_of_a_model_on_a_hub_is_not_run_and_not_asked_about(tmp_path, monkeypatch):
    folder = model_with_code(tmp_path / "m")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    [member] = parse(f"hf:{folder}")
    with pytest.raises(WeightsError, match=r"Python code of its own.*--trust-remote-code"):
        open_member(member, InputSize(32))
    assert not list(tmp_path.rglob("ran"))
    seen = []
    monkeypatch.setattr(
        "transformers.AutoConfig.from_pretrained",
        lambda name, **more: seen.append(more["trust_remote_code"]) or (_ for _ in ()).throw(OSError()),
    )
    with pytest.raises(WeightsError):
        open_member(member, InputSize(32), trust_remote_code=True)
    assert seen == [True]


@pytest.mark.parametrize("nested", [False, True])
def test_an_attention_kernel_of_a_hub_is_not_downloaded(tmp_path, nested):
    from .teachers.test_sources import saved_by_transformers

    saved_by_transformers("vit", tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    kernel = {"attn_implementation": "stranger/kernel"}
    config |= {"vision_config": kernel} if nested else kernel
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"Python code of its own.*--trust-remote-code"):
        open_member(parse(f"hf:{tmp_path / 'm'}")[0], InputSize(32))


def test_a_known_model_with_code_beside_it_is_opened_without(tmp_path):
    folder = model_with_code(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "vit"}
    (folder / "config.json").write_text(json.dumps(config))
    assert open_member(parse(f"hf:{folder}")[0], InputSize(32)).head is not None
    assert not list(tmp_path.rglob("ran"))


def test_a_pickle_that_a_card_names_is_not_unpickled(stage, tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": Evil()}, tmp_path / "w.pth")
    shutil.copytree(stage / "fitted", tmp_path / "fitted")
    card = tmp_path / "fitted" / "teacher.json"
    card.write_text(card.read_text().replace(CODE, f"timm:resnet18@{tmp_path / 'w.pth'}"))
    with pytest.raises(WeightsError, match=r"w\.pth cannot be read"):
        read_teacher(tmp_path / "fitted", device=torch.device("cpu"))
    assert not (tmp_path / "ran").exists()


def test_weights_of_torchvision_s_hub_are_not_unpickled(tmp_path, monkeypatch):
    """The file in torch's cache, which others may have written to."""
    import torchvision

    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    (tmp_path / "checkpoints").mkdir()
    torch.save(Evil(), tmp_path / "checkpoints" / url.rpartition("/")[2])
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsError, match=r"could not be fetched \(UnpicklingError\)"):
        open_member(parse("torchvision:resnet18")[0], InputSize(32))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("location", ["../outside.bin", "absolute", "link.bin"])
def test_weights_outside_the_folder_of_an_onnx_file_are_not_read(tmp_path, location):
    import onnx

    (tmp_path / "model").mkdir()
    path = onnx_file(tmp_path / "model" / "a.onnx")
    outside = tmp_path / "outside.bin"
    outside.write_bytes(bytes(48))
    (tmp_path / "model" / "link.bin").symlink_to(outside)
    model = onnx.load(path)
    [weight] = [tensor for tensor in model.graph.initializer if tensor.name == "weight"]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {
        "location": str(outside) if location == "absolute" else location,
        "length": "48",
    }.items():
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(WeightsError, match="cannot be read"):
        open_member(parse(f"onnx:{path}")[0], InputSize(32))


def test_an_onnx_file_with_operators_of_its_own_is_refused(tmp_path):
    import onnx

    path = onnx_file(tmp_path / "a.onnx")
    model = onnx.load(path)
    model.graph.node[0].domain = "stranger"
    model.opset_import.append(onnx.helper.make_opsetid("stranger", 1))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(WeightsError, match="cannot be read"):
        open_member(parse(f"onnx:{path}")[0], InputSize(32))


@pytest.mark.parametrize("verb", [["train"], ["label", "--epochs=1"], ["teacher", "fit", CODE]])
def test_the_switch_for_code_of_hubs_is_a_setting_of_this_call(tmp_path, monkeypatch, verb):
    seen = {}
    job = {"train": "run.train", "label": "labelling.label", "teacher": "teacher_fitting.fit_folder"}[verb[0]]
    monkeypatch.setattr(f"deitkit.training.{job}", lambda *_, **settings: seen.update(settings) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main([*verb, str(tmp_path), "--out", str(tmp_path / "out"), "--trust-remote-code"])
    assert seen["teacher.trust_remote_code"] is True


def test_the_current_folder_replaces_no_module(tmp_path, monkeypatch):
    """A file there named as a module of Python is not imported in its stead afterwards."""
    (tmp_path / "evil.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert open_member(parse(EVIL)[0], InputSize(32)).name == "evil:teach"
    assert sys.path[-1] == str(tmp_path)
    sys.modules.pop("evil")


def test_links_to_nowhere_and_files_that_vanish_are_listed(random_run, image_folder, monkeypatch, capsys):
    """They end no classification of the others."""
    (image_folder / "cat" / "lost.png").symlink_to("nowhere")
    vanishing, load = image_folder / "cat" / "0.png", classifier.load_folder

    def slow_load(*arguments, **options):
        vanishing.unlink()  # after the folder was listed
        return load(*arguments, **options)

    monkeypatch.setattr(classifier, "load_folder", slow_load)
    assert call("predict", random_run, image_folder, "--csv", "--device=cpu", "--model=student") == 1
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 1 + 24 + 1
    assert sum(row.endswith("the file is not there") for row in rows) == 2


def test_a_refused_image_holds_no_memory(random_run, image_folder):
    """A traceback would hold its pixels while the rest of the batch is decoded."""
    (image_folder / "cat" / "0.png").write_bytes((image_folder / "cat" / "1.png").read_bytes()[:900])
    found = deitkit.load(random_run, device="cpu").predict_all([image_folder / "cat"])
    [error] = [each for each in found if isinstance(each, DeitkitError)]
    assert error.__traceback__ is error.__context__ is error.__cause__ is None
