"""`deitkit card` and `deitkit push`, against a stand-in of the hub's HTTP API."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import ModelCard as HubCard
from PIL import Image

from deitkit.classifier import load, load_student
from deitkit.cli import main
from deitkit.deploy.hub_card import CardFacts, card_markdown
from deitkit.deploy.hub_push import push_run
from deitkit.deploy.model_card import Accuracy, ModelCard, read_card
from deitkit.errors import DeitkitError
from deitkit.inference.unfamiliarity import unit
from deitkit.models import joint_logits
from deitkit.preprocessing import Preprocessing
from deitkit.run_folder import write_calibration
from deitkit.run_schema import CalibrationInfo
from deitkit.teachers.teacher import MemberCard, TeacherCard
from deitkit.weights.conversion import convert

from ..teachers.models import fitted_folder
from .hub_server import TOKEN, hub_server

FACTS = CardFacts(license="mit", data_license="cc-by-4.0")
CARD = ModelCard(
    name="flowers",
    model="student",
    kind="deit",
    architecture="DeiT nano",
    params=1_200_000,
    input="96 x 96 pixels",
    accuracy=Accuracy("top-1", 91.23, (88.0, 94.0), 400),
    data="photos",
    train_images=1200,
    split="stratified",
    date="2026-11-28",
    limits=("It knows 2 classes.",),
    others=(
        Accuracy("balanced accuracy", 90.0, None, 400),
        Accuracy("top-1 on the test split", 89.0, None, 100),
    ),
    seconds=7200.0,
    machine="2 cores",
)


@pytest.fixture
def run(random_run):
    """Calibrated, with two heads whose mean has another temperature than the joint classifier."""
    temperatures = {"class": 1.5, "distill": 0.8, "mean": 1.25}
    calibration = CalibrationInfo(
        images=60, temperature=1.6, head_temperatures=temperatures, familiar_up_to=0.4
    )
    write_calibration(random_run, calibration, unit(torch.rand(2, 32)))
    return random_run


def succeed(*arguments: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert not end.value.code


def test_the_card_has_the_hubs_metadata():
    card = HubCard(card_markdown(CARD, ("rose", "<b>tulip"), FACTS, "me/flowers"))
    assert card.data.license == "mit" and card.data.pipeline_tag == "image-classification"
    assert card.data.library_name == "timm" and card.data.model_name == "flowers"
    found = {(r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert found == {
        ("validation", "accuracy"): 91.23,
        ("validation", "balanced_accuracy"): 90.0,
        ("test", "accuracy"): 89.0,
    }
    assert "| top-1 | 91.2 % | 88.0 to 94.0 | 400 |" in card.text and "\\<b\\>tulip" in card.text
    assert "Data: cc-by-4.0." in card.text and 'timm.create_model("hf-hub:me/flowers"' in card.text


def test_energy_is_estimated_and_carbon_left_out_unless_it_is_known():
    unknown = card_markdown(CARD, ("a", "b"), CardFacts(), "me/flowers")
    assert "40 Wh at 20 W, 0.2 kWh at 100 W" in unknown and "CO2" not in unknown and "co2" not in unknown
    assert "license:" not in unknown and "Weights: not stated" in unknown
    known = card_markdown(CARD, ("a", "b"), replace(FACTS, watts=60.0, grams_per_kwh=300.0), "me/flowers")
    assert "0.12 kWh (60 W" in known and "CO2, estimated: 36.0 g" in known
    assert HubCard(known).data.to_dict()["co2_eq_emissions"]["emissions"] == 36.0
    assert "Not known." in card_markdown(replace(CARD, seconds=None), ("a", "b"), FACTS, "me/flowers")


def test_card_prints_it(run, capsys):
    succeed("card", str(run), "--license=mit", "--repo=me/flowers")
    text = capsys.readouterr().out
    assert HubCard(text).data.license == "mit" and "hf:me/flowers" in text and str(run.parent) not in text


def test_a_dry_run_uploads_nothing_and_keeps_the_files(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi", lambda *a: pytest.fail("asked the hub"))
    out = tmp_path / "out"
    licences = ["--license=mit", "--data-license=mit"]
    succeed("push", str(run), "me/flowers", *licences, "--dry-run", "--out", str(out))
    assert "nothing was uploaded" in capsys.readouterr().out
    assert {path.name for path in (out / "model").iterdir()} == {
        "README.md", "config.json", "model.safetensors", "calibration.json", "class_means.safetensors",
    }  # fmt: skip
    student, again = load_student(run, "cpu", "pytorch"), load_student(out / "model", "cpu", "pytorch")
    views = torch.rand(3, 3, 16, 24)
    for expected, found in zip(student.backend(views), again.backend(views), strict=True):
        assert torch.allclose(expected, found, atol=1e-5)
    with torch.inference_mode():
        logits = joint_logits(student.model((views - student.mean) / student.std)) / 1.25
        opened = timm.create_model(f"local-dir:{out / 'model'}", pretrained=True).eval()
        assert torch.allclose(opened((views - student.mean) / student.std), logits, atol=1e-5)
    # Heads that are divided already are not divided again.
    converted = convert(out / "model", tmp_path / "timm", "timm")
    assert not [change for change in converted.changes if "divided" in change]


_OPEN = """
import json, sys, deitkit, timm, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

name, path = sys.argv[1:]
image = Image.open(path).convert("RGB")
model = timm.create_model(f"hf-hub:{name}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
of_transformers = AutoModelForImageClassification.from_pretrained(name).eval()
processor = AutoImageProcessor.from_pretrained(name)
with torch.inference_mode():
    by_timm = model(transform(image)[None]).softmax(-1)[0].tolist()
    by_transformers = of_transformers(**processor(image, return_tensors="pt")).logits.softmax(-1)[0].tolist()
[prediction] = deitkit.load(f"hf:{name}", device="cpu").predict(image)
print(json.dumps({
    "timm": by_timm, "transformers": by_transformers, "labels": of_transformers.config.id2label,
    "deitkit": prediction.probabilities, "unfamiliarity": prediction.unfamiliarity,
}))
"""


def test_what_is_pushed_opens_everywhere_to_the_same_answers(run, tmp_path):
    """Through the hub's API: deitkit as the run itself, timm as transformers, all three nearly alike."""
    pytest.importorskip("transformers", reason="needs pip install transformers")
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 36, 3), dtype=np.uint8)).save(path)
    with hub_server() as hub:
        own = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }
        environment = os.environ | own

        def python(*arguments: str) -> str:
            command = [sys.executable, *arguments]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr + "\n".join(hub.requests)
            return done.stdout

        licences = ["--license=mit", "--data-license=mit"]
        said = python("-m", "deitkit", "push", str(run), "me/flowers", *licences, "--private")
        assert f"{hub.url}/me/flowers" in said
        files = hub.repos["models", "me/flowers"]
        assert (
            "README.md" in files
            and b"license: mit" in files["README.md"]
            and "private" in json.dumps(hub.created[0])
        )
        found = json.loads(python("-c", _OPEN, "me/flowers", str(path)).splitlines()[-1])
    [expected] = load(run, device="cpu", backend="pytorch").predict(path)
    assert found["deitkit"] == pytest.approx(expected.probabilities, abs=1e-5)
    assert found["unfamiliarity"] == pytest.approx(expected.unfamiliarity, abs=1e-5)
    assert found["labels"] == {"0": "cat", "1": "dog"}
    assert found["transformers"] == pytest.approx(found["timm"], abs=0.02)  # they resize by other libraries
    by_name = dict(zip(("cat", "dog"), found["timm"], strict=True))
    assert max(by_name, key=by_name.get) == expected.label


@pytest.mark.parametrize(
    ("repo", "facts", "sentence"),
    [
        ("flowers", FACTS, "give OWNER/NAME"),
        ("me/fl owers", FACTS, "give OWNER/NAME"),
        ("me/flowers", CardFacts(license="mit"), "needs a licence"),
        ("me/flowers", FACTS, "nobody is logged in"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(random_run, repo, facts, sentence, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(DeitkitError, match=re.escape(sentence)):
        push_run(random_run, repo, facts)


def test_a_repository_that_cannot_be_reached_is_told(monkeypatch):
    monkeypatch.setattr("deitkit.weights.hub._reachable", lambda endpoint: False)
    with pytest.raises(DeitkitError, match=r"hf:me/no-such-model.*the hub cannot be reached"):
        load("hf:me/no-such-model")


def test_a_teacher_is_refused(tmp_path):
    with pytest.raises(DeitkitError, match=r"only students are uploaded.*--model student.*export --to web"):
        push_run(fitted_folder(tmp_path), "me/flowers", FACTS, dry_run=True)


def test_a_hybrid_is_pushed_for_deitkit_and_onnx_runtime(hybrid_run, image_folder, tmp_path, caplog):
    pytest.importorskip("onnxscript", reason='needs pip install "deitkit[onnx]"')
    calibration = CalibrationInfo(images=60, temperature=1.6, head_temperatures={"mean": 1.25})
    write_calibration(hybrid_run, calibration)
    push_run(hybrid_run, "me/flowers", FACTS, dry_run=True, out=tmp_path / "out")
    assert "timm and transformers have no hybrid students" in caplog.text
    model = tmp_path / "out" / "model"
    assert {path.name for path in model.iterdir()} == {
        "README.md", "config.json", "model.safetensors", "calibration.json", "model.onnx", "model_sample.py",
    }  # fmt: skip
    image = image_folder / "cat" / "1.png"
    [expected] = load(hybrid_run, device="cpu", backend="pytorch").predict(image)
    [found] = load(model, device="cpu", backend="pytorch").predict(image)
    assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-6)
    card = HubCard((model / "README.md").read_text())
    assert card.data.library_name == "deitkit" and "timm" not in card.data.tags
    assert "hybrid of EfficientNet-Lite0's first stages and DeiT blocks" in card.text
    assert "create_model" not in card.text and "cannot open it" in card.text


@pytest.mark.parametrize("to", ["deitkit", "timm", "transformers", "official"])
def test_a_hybrid_is_converted_for_deitkit_alone(hybrid_run, image_folder, tmp_path, to):
    if to != "deitkit":
        with pytest.raises(DeitkitError, match=f"{to} has no hybrid students; deitkit export"):
            convert(hybrid_run, tmp_path / "other", to)
        return
    convert(hybrid_run, tmp_path / "other", to)
    image = image_folder / "cat" / "1.png"
    [expected] = load(hybrid_run, device="cpu", backend="pytorch").predict(image)
    [found] = load(tmp_path / "other", device="cpu", backend="pytorch").predict(image)
    assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-6)


def test_a_teachers_card_names_what_it_is(tmp_path):
    folder = fitted_folder(tmp_path)
    card = read_card(folder, load(folder, device="cpu", backend="pytorch"))
    assert (card.kind, card.architecture) == ("teacher", "test_efficientnet with a linear probe")
    text = card_markdown(card, ("cat", "dog"), FACTS, "me/flowers")
    assert "2 classes: test_efficientnet with a linear probe" in text and "DeiT" not in text
    assert "timm" not in text and "hf:me/flowers" not in text


def test_teachers_have_their_papers_names():
    member = MemberCard(
        spec="lite0", name="tf_efficientnet_lite0", weight=1.0, head="linear", columns=None, how="",
        params=1, map_channels=(), finetuned=False, backend="pytorch",
        preprocessing=Preprocessing((8, 8), (0.5,) * 3, (0.5,) * 3, 1.0),
    )  # fmt: skip
    assert TeacherCard(("a",), (member,)).described == "EfficientNet-Lite0 with a linear probe"
    tuned = replace(member, name="resnet18", head="pretrained", finetuned=True, weight=3.0)
    described = TeacherCard(("a",), (member, tuned)).described
    assert described == "0.25 EfficientNet-Lite0 with a linear probe + 0.75 resnet18, fine-tuned"


def test_the_space_has_the_page(run, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript", reason='needs pip install "deitkit[onnx]"')
    from deitkit.deploy.export_formats import web_site
    from deitkit.deploy.web_runtime import SCRIPT, WASM

    monkeypatch.setattr(web_site, "web_runtime", lambda given: {SCRIPT: b"script", WASM: b"wasm"})
    found = push_run(run, "me/flowers", FACTS, dry_run=True, space=True, out=tmp_path / "out")
    names = {path.name for path in found.space_files}
    assert {"README.md", "index.html", "model.onnx", "model.json"} <= names
    readme = (tmp_path / "out" / "space" / "README.md").read_text()
    assert "sdk: static" in readme and "- me/flowers" in readme
