"""Weights out for other projects, with the same logits there."""

import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from deitkit import weights
from deitkit.errors import DeitkitError
from deitkit.models import joint_logits
from deitkit.preprocessing import Preprocessing

from .models import assert_agrees, assert_same, images_for, little

PREPROCESSING = Preprocessing((16, 32), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3), crop=1.0)
CLASSES = ["cat", "dog", "eel", "fox", "gnu"]
SHAPES = [
    pytest.param({}, id="distilled"),
    pytest.param({"distilled": False}, id="plain"),
    pytest.param({"image_size": (8, 64)}, id="non-square"),
    pytest.param({"image_size": (16, 16), "patch_size": (4, 4), "mlp_ratio": 3.0}, id="square"),
]


def exported(model, folder, to):
    return weights.export(model, folder, to, replace(PREPROCESSING, image_size=model.image_size), CLASSES)


@pytest.mark.parametrize("changes", SHAPES)
@pytest.mark.parametrize("to", ["deitkit", "timm", "transformers"])
def test_what_is_exported_is_read_again_unchanged(to, changes, tmp_path):
    model = little(**changes)
    files = exported(model, tmp_path, to)
    assert sorted(files) == sorted(tmp_path.iterdir())
    again = little(1, **changes)
    assert weights.load_into(again, weights.read(tmp_path)) == []
    assert_same(again.state_dict(), model.state_dict())


@pytest.mark.parametrize("changes", SHAPES)
@pytest.mark.parametrize("how", ["folder", "checkpoint_path"])
def test_timm_loads_the_export(how, changes, tmp_path):
    model = little(**changes)
    exported(model, tmp_path, "timm")
    if how == "folder":
        loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    else:
        config = json.loads((tmp_path / "config.json").read_text())
        loaded = timm.create_model(
            config["architecture"],
            checkpoint_path=str(tmp_path / "model.safetensors"),
            num_classes=config["num_classes"],
            **config["model_args"],
        )
    images = images_for(model)
    assert_agrees(loaded.eval()(images), joint_logits(model(images)).detach())


def test_timm_sees_with_the_exported_preprocessing(tmp_path):
    exported(little(), tmp_path, "timm")
    loaded = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    seen = timm.data.resolve_model_data_config(loaded)
    assert seen["input_size"] == (3, 16, 32)
    assert (tuple(seen["mean"]), tuple(seen["std"])) == (PREPROCESSING.mean, PREPROCESSING.std)
    assert (seen["interpolation"], seen["crop_pct"]) == ("bicubic", 1.0)


@pytest.mark.parametrize("changes", SHAPES)
def test_transformers_loads_the_export(changes, tmp_path):
    transformers = pytest.importorskip("transformers")
    model = little(**changes)
    exported(model, tmp_path, "transformers")
    loaded, info = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert [loaded.config.id2label[i] for i in range(5)] == CLASSES
    images, output = images_for(model), model(images_for(model))
    answer = loaded.eval()(images)
    assert_agrees(answer.logits, joint_logits(output).detach())
    if output.distill_logits is not None:
        assert_agrees(answer.cls_logits, output.class_logits.detach())
        assert_agrees(answer.distillation_logits, output.distill_logits.detach())


def test_transformers_prepares_images_as_exported(tmp_path):
    """A image of the model's own size passes both resizes untouched, so the pixels must agree exactly."""
    transformers = pytest.importorskip("transformers")
    model = little(image_size=(16, 16), patch_size=(4, 4))
    exported(model, tmp_path, "transformers")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    seen = processor(Image.fromarray(pixels), return_tensors="pt").pixel_values[0]
    expected = (pixels / 255 - PREPROCESSING.mean) / PREPROCESSING.std
    assert_agrees(seen, expected.transpose(2, 0, 1))
    wide = processor(Image.fromarray(pixels).resize((80, 40)), return_tensors="pt").pixel_values
    assert wide.shape == (1, 3, 16, 16)


@pytest.mark.parametrize("distilled", [True, False])
def test_the_official_code_loads_the_export(distilled, tmp_path):
    """Its model is timm's class; it takes checkpoint["model"] and loads it strictly."""
    model = little(distilled=distilled, image_size=(16, 16), patch_size=(4, 4))
    [path] = exported(model, tmp_path, "official")
    state = torch.load(path, weights_only=True)["model"]
    reference = timm.create_model(
        f"deit_tiny{'_distilled' if distilled else ''}_patch16_224",
        img_size=16,
        patch_size=4,
        embed_dim=32,
        depth=2,
        num_heads=4,
        num_classes=5,
    ).eval()
    reference.load_state_dict(state, strict=True)
    images = images_for(model)
    assert_agrees(reference(images), joint_logits(model(images)).detach())
    assert_same(weights.read(path), model.state_dict())


def test_deitkit_uses_its_own_export_like_a_run(tmp_path):
    from deitkit import classifier

    model = little()
    exported(model, tmp_path, "deitkit")
    loaded = classifier.load(tmp_path, device="cpu")
    assert loaded.classes == tuple(CLASSES)
    images = images_for(model)
    torch.testing.assert_close(loaded.model(images), model(images))


def test_export_refuses_unknown_formats_and_miscounted_classes(tmp_path):
    names = "deitkit, official, timm, transformers"
    with pytest.raises(DeitkitError, match=f"cannot export to 'caffe'; choose one of {names}"):
        weights.export(little(), tmp_path, "caffe", PREPROCESSING, CLASSES)
    with pytest.raises(DeitkitError, match="4 class names for 5 outputs"):
        weights.export(little(), tmp_path, "timm", PREPROCESSING, CLASSES[:4])
