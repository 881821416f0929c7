"""`deitkit convert`: every source to every format, at every shape, with the answers checked."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from deitkit import weights
from deitkit.classifier import load
from deitkit.cli import main as command_line
from deitkit.errors import DeitkitError
from deitkit.models.blocks import resize_positions
from deitkit.models.deit import DeiT, joint_logits
from deitkit.preprocessing import Preprocessing
from deitkit.weights.conversion import convert
from tests.parity.test_preprocessing import photograph
from tests.test_bad_input import refusal
from tests.weights.models import assert_agrees, images_for, little

CLASSES = ("cat", "dog", "eel", "fox", "gnu")
VIEW = Preprocessing((32, 32), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), crop=0.875)
FORMATS = ("deitkit", "timm", "transformers", "official")


def model_of(**changes) -> DeiT:
    """Small, and square, so that sources that tell no grid can be read."""
    return little(**({"image_size": (32, 32), "patch_size": (8, 8)} | changes))


def write(model: DeiT, folder: Path, to: str, **view) -> Path:
    """A source: the folder, or for the official code its file."""
    files = weights.export(model, folder, to, replace(VIEW, image_size=model.image_size, **view), CLASSES)
    return files[0] if to == "official" else folder


def foreign_logits(folder: Path, to: str, model: DeiT, images: torch.Tensor) -> torch.Tensor:
    """What the other project says of the images after loading a converted folder."""
    if to == "timm":
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(images)
    if to == "transformers":
        transformers = pytest.importorskip("transformers")
        return transformers.AutoModelForImageClassification.from_pretrained(folder).eval()(images).logits
    if to == "deitkit":
        return joint_logits(load(folder, device="cpu").model(images))
    distilled = model.dist_token is not None
    name = f"deit_tiny{'_distilled' if distilled else ''}_patch16_224"
    reference = timm.create_model(
        name,
        img_size=model.image_size,
        patch_size=model.patch_embed.patch_size,
        embed_dim=model.embed_dim,
        depth=len(model.blocks),
        num_heads=model.num_heads,
        num_classes=model.num_classes,
    )
    reference.load_state_dict(torch.load(folder / "checkpoint.pth", weights_only=True)["model"])
    return reference.eval()(images)


@pytest.mark.parametrize("distilled", [True, False], ids=["distilled", "plain"])
@pytest.mark.parametrize(("source", "to"), list(itertools.product(FORMATS, FORMATS)))
def test_every_format_becomes_every_other(source, to, distilled, tmp_path):
    model = model_of(distilled=distilled)
    done = convert(write(model, tmp_path / "source", source), tmp_path / "out", to, num_heads=4)
    assert sorted(done.files) == sorted((tmp_path / "out").iterdir())
    images = images_for(model)
    assert_agrees(foreign_logits(tmp_path / "out", to, model, images), joint_logits(model(images)).detach())
    if source in ("deitkit", "transformers"):
        assert done.changes == []  # names and preprocessing came along
    if source != "official" and to == "deitkit":
        again = load(tmp_path / "out", device="cpu")
        assert again.classes == CLASSES and 32 / again.crop == pytest.approx(36, abs=0.6)
        assert again.mean.flatten().tolist() == pytest.approx(VIEW.mean)


def test_a_bare_file_says_what_is_assumed(tmp_path):
    torch.save(model_of(embed_dim=64).state_dict(), tmp_path / "a.pth")
    with pytest.raises(DeitkitError, match="attention heads of width 64 is not known; give --num-heads"):
        convert(tmp_path / "a.pth", tmp_path / "out", "deitkit")
    published = DeiT(
        image_size=(32, 32), patch_size=(16, 16), num_classes=7, embed_dim=192, depth=1, num_heads=3
    )
    torch.save({"model": published.state_dict()}, tmp_path / "b.pth")
    done = convert(tmp_path / "b.pth", tmp_path / "out", "deitkit")
    assert [sentence.split(":")[0] for sentence in done.changes] == [
        "3 attention heads are assumed, as in the published model of width 192",
        "the source does not say how it preprocesses images",
        "the 7 classes have no names",
    ]
    loaded = load(tmp_path / "out", device="cpu")
    assert loaded.classes == tuple("0123456") and loaded.crop == 0.875


def test_deit3_of_timm_and_its_facts(tmp_path, monkeypatch):
    """A stand-in for the hub: timm's own model and description, with small random weights."""
    monkeypatch.setattr(timm, "create_model", small(timm.create_model))
    done = convert("timm:deit3_small_patch16_224", tmp_path / "out", "timm")
    assert not [c for c in done.changes if "does not say" in c]
    reference = timm.create_model("deit3_small_patch16_224", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    monkeypatch.undo()
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    assert_agrees(loaded(images), reference(images).detach())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["pretrained_cfg"]["crop_pct"] == 0.9 and config["model_args"]["num_heads"] == 3


def small(create):
    def create_small(name, pretrained):
        torch.manual_seed(0)
        made = create(name, img_size=64, embed_dim=96, depth=2, num_heads=3, num_classes=5)
        with torch.no_grad():
            for p in made.parameters():
                p.add_(0.1 * torch.randn(p.shape))
        return made

    return create_small


@pytest.mark.parametrize("wanted", [True, False], ids=["to distilled", "to plain"])
def test_the_distillation_token_comes_and_goes(wanted, tmp_path):
    source = model_of(distilled=not wanted)
    done = convert(write(source, tmp_path / "a", "deitkit"), tmp_path / "b", "deitkit", distilled=wanted)
    assert "the distillation token, its position and its head" in done.changes[0]
    target = load(tmp_path / "b", device="cpu").model
    assert (target.dist_token is not None) == wanted
    torch.testing.assert_close(target.head.weight, source.head.weight)


@pytest.mark.parametrize("antialias", [False, True])
def test_another_size_not_square_and_other_patches(antialias, tmp_path, capsys):
    """From the command line; the positions are those of `resize_positions`, and --antialias changes them."""
    source = model_of()
    write(source, tmp_path / "a", "transformers")
    options = ["--image-size=24x48", "--patch-size=12x8", *(["--antialias"] if antialias else [])]
    with pytest.raises(SystemExit) as stop:
        command_line(["convert", str(tmp_path / "a"), str(tmp_path / "b"), "--to=timm", *options])
    assert stop.value.code == 0
    said = capsys.readouterr()
    assert "the position embeddings are resized from 4x4 to 2x6 patches" in said.err
    assert "the patch kernels are resized from 8x8 to 12x8 pixels" in said.err
    assert str(tmp_path / "b" / "model.safetensors") in said.out
    written = load_file(tmp_path / "b" / "model.safetensors")
    expected = resize_positions(source.pos_embed, 2, (4, 4), (2, 6), antialias)
    torch.testing.assert_close(written["pos_embed"], expected.detach())
    other = resize_positions(source.pos_embed, 2, (4, 4), (2, 6), not antialias)
    assert (written["pos_embed"] - other).abs().max() > 1e-3
    loaded = timm.create_model(f"local-dir:{tmp_path / 'b'}", pretrained=True).eval()
    assert loaded(torch.zeros(1, 3, 24, 48)).shape == (1, 5)


def test_another_number_of_classes_starts_the_heads_afresh(tmp_path):
    source = model_of()
    done = convert(write(source, tmp_path / "a", "deitkit"), tmp_path / "b", "transformers", num_classes=9)
    assert "head is initialised anew for 9 classes: the weights have 5" in done.changes
    assert "the 9 classes have no names: they are numbered" in done.changes
    again = weights.read(tmp_path / "b")
    assert again["head.weight"].shape == (9, 32) and again.info.classes == tuple("012345678")
    torch.testing.assert_close(again["blocks.1.mlp.fc2.weight"], source.blocks[1].mlp.fc2.weight)


def test_multilabel_stays_multilabel(tmp_path):
    model = model_of()
    weights.export(model, tmp_path / "a", "deitkit", VIEW, CLASSES, "multilabel")
    convert(tmp_path / "a", tmp_path / "b", "transformers")
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    convert(tmp_path / "b", tmp_path / "c", "deitkit")
    assert load(tmp_path / "c", device="cpu").task == "multilabel"


def test_a_processor_that_ignores_the_aspect_ratio_is_reported(tmp_path):
    """The published DeiT's: 256 x 256 whatever the image's shape, then the centre of 224."""
    model = model_of()
    write(model, tmp_path / "a", "transformers")
    processor = json.loads((tmp_path / "a" / "preprocessor_config.json").read_text())
    processor |= {"size": 36, "crop_size": 32, "resample": 2}  # numbers, as old files have them
    (tmp_path / "a" / "preprocessor_config.json").write_text(json.dumps(processor))
    done = convert(tmp_path / "a", tmp_path / "b", "deitkit")
    assert any("resizes images to a fixed size" in c for c in done.changes)
    assert any("resizes images bilinear" in c for c in done.changes)
    assert load(tmp_path / "b", device="cpu").crop == pytest.approx(32 / 36)


def test_what_cannot_be_converted_is_refused_in_a_sentence(tmp_path, capsys):
    source = write(model_of(), tmp_path / "a", "deitkit")
    before = {p.name: p.read_bytes() for p in source.iterdir()}
    assert "not an empty folder" in refusal(capsys, "convert", source, source, "--to", "timm")
    assert {p.name: p.read_bytes() for p in source.iterdir()} == before
    assert "cannot export to 'caffe'" in refusal(capsys, "convert", source, tmp_path / "b", "--to", "caffe")
    assert "no weights at" in refusal(capsys, "convert", tmp_path / "gone", tmp_path / "b", "--to", "timm")
    size = ("--image-size", "30")
    assert "not a multiple" in refusal(capsys, "convert", source, tmp_path / "b", "--to", "timm", *size)
    save_file(
        {k: v for k, v in model_of().state_dict().items() if "head" not in k}, tmp_path / "x.safetensors"
    )
    arguments = ("convert", tmp_path / "x.safetensors", tmp_path / "b", "--to", "timm", "--num-heads", "4")
    assert "have no head; give --num-classes" in refusal(capsys, *arguments)
    state = little(image_size=(16, 40)).state_dict()  # 4 x 5 patches
    torch.save(state, tmp_path / "y.pth")
    arguments = ("convert", tmp_path / "y.pth", tmp_path / "b", "--to", "timm", "--num-heads", "4")
    assert "20 positions, which are no square grid" in refusal(capsys, *arguments)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("to", ["timm", "transformers"])
def test_a_folder_of_another_project_is_no_run(to, tmp_path, capsys):
    folder = write(model_of(), tmp_path / "a", to)
    sentence = refusal(capsys, "predict", folder, write(model_of(), tmp_path / "b", to) / "config.json")
    assert f"looks like a model of {to}; deitkit convert {folder} NEW --to deitkit" in sentence


SOURCES = [(64, 64), (60, 40), (300, 400), (1333, 1000)]


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize("backend", ["pil", "torchvision"])
def test_transformers_answers_a_file_as_predict_does(backend, source, suffix, tmp_path):
    """AutoImageProcessor and AutoModel on the exported folder against `predict` on the same file.

    Differences of both heads' logits, whose spread is about 0.7: what float32 sums leave with Pillow; one
    grey level here and there with torchvision; a large JPEG is decoded at a reduced scale.
    """
    transformers = pytest.importorskip("transformers")
    model = little(image_size=(64, 64), patch_size=(8, 8), embed_dim=64, depth=4)
    run = write(model, tmp_path / "run", "deitkit")
    convert(run, tmp_path / "hf", "transformers")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "hf", backend=backend)
    loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "hf").eval()
    file = tmp_path / f"image.{suffix}"
    photograph(*source).save(file, quality=92)
    classifier = load(run, device="cpu")
    ours = classifier.forward(torch.from_numpy(np.stack([classifier.pixels(file)])))
    with torch.inference_mode():
        theirs = loaded(**processor(Image.open(file), return_tensors="pt"))
    pairs = ((ours.class_logits, theirs.cls_logits), (ours.distill_logits, theirs.distillation_logits))
    difference = max(float((a - b).abs().max()) for a, b in pairs)
    spread = float(theirs.cls_logits.std())
    print(f"largest difference of logits: {difference:.1e}, their spread: {spread:.1f}")
    reduced = suffix == "jpg" and min(source) >= 2 * 2 * 73
    assert difference < (3e-2 if reduced else 1e-3 if backend == "torchvision" else 1e-5)
    assert spread > 0.15  # an even answer would agree with anything
    [answer] = classifier.predict([file])
    joint = (theirs.cls_logits.softmax(-1) + theirs.distillation_logits.softmax(-1))[0] / 2
    assert [answer.probabilities[name] for name in CLASSES] == pytest.approx(joint.tolist(), abs=difference)
