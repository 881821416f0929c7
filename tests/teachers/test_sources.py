"""Each source returns what the model itself does: features, logits, feature maps, and its preprocessing."""

from __future__ import annotations

import json

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from deitkit.errors import DeitkitError
from deitkit.models.deit import joint_probabilities
from deitkit.preprocessing import InputSize
from deitkit.run_folder import read_student
from deitkit.teachers.pretrained import backend_builders
from deitkit.teachers.spec import open_member, parse

from .models import onnx_file, timm_file

CPU = torch.device("cpu")
SIZE = 32


def opened(text: str, configured: int | None = SIZE):
    [member] = parse(text)
    return open_member(member, InputSize(configured, (SIZE, SIZE)))


def answer(model, images):
    """Logits and maps of images in [0, 1], through the reference backend."""
    pooled, *maps = next(iter(backend_builders(model, model.preprocessing, CPU).values()))()(images)
    return model.head(pooled) if model.head is not None else pooled, maps


def random_images(size: int = SIZE, seed: int = 0) -> torch.Tensor:
    return torch.rand(3, 3, size, size, generator=torch.Generator().manual_seed(seed))


def normalised(images, view):
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (view.mean, view.std))
    return (images - mean) / std


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "test_resnet"])
@torch.no_grad()
def test_timm(tmp_path, name):
    text = timm_file(tmp_path, name)
    model = opened(text)
    options = {"img_size": SIZE} if "vit" in name else {}
    reference = timm.create_model(name, **options).eval()
    if "vit" in name:
        reference = timm.create_model(name).eval()
    from safetensors.torch import load_file

    reference.load_state_dict(load_file(text.partition("@")[2]))
    if "vit" in name:
        reference.set_input_size(img_size=SIZE)
    config = reference.default_cfg
    view = model.preprocessing
    assert (view.image_size, view.mean, view.std) == ((SIZE, SIZE), config["mean"], config["std"])
    assert (view.crop, view.interpolation) == (config["crop_pct"], config["interpolation"])
    logits, maps = answer(model, random_images())
    torch.testing.assert_close(logits, reference(normalised(random_images(), view)), rtol=1e-4, atol=1e-5)
    assert len(maps) == 2 and len(model.outputs) == 1000
    expected = [SIZE // 16, SIZE // 16] if "vit" in name else [SIZE // 8, SIZE // 16]
    assert [m.shape[-1] for m in maps] == expected


def test_efficientnet_lite_is_normalised_with_127_and_128(tmp_path):
    view = opened(timm_file(tmp_path, "tf_efficientnet_lite0"), None).preprocessing
    assert view.mean == (127 / 255,) * 3 and view.std == (128 / 255,) * 3
    assert (view.crop, view.interpolation, view.image_size) == (0.875, "bicubic", (128, 128))
    white = normalised(torch.ones(1, 3, 1, 1), view)
    torch.testing.assert_close(white, torch.ones(1, 3, 1, 1))  # (255 - 127) / 128


@pytest.mark.parametrize(
    ("name", "maps"), [("resnet18", 2), ("mobilenet_v3_small", 2), ("squeezenet1_1", None), ("swin_t", 2)]
)
@torch.no_grad()
def test_torchvision(tmp_path, name, maps):
    torch.manual_seed(0)
    reference = torchvision.models.get_model(name, weights=None).eval()
    save_file(reference.state_dict(), tmp_path / "w.safetensors")
    model = opened(f"torchvision:{name}@{tmp_path / 'w.safetensors'}", 64)
    logits, found = answer(model, random_images(64))
    expected = reference(normalised(random_images(64), model.preprocessing))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    if maps is not None:
        assert [m.shape[-1] for m in found] == [8, 4]
    assert model.preprocessing.crop == pytest.approx(224 / {"resnet18": 256, "swin_t": 232}.get(name, 256))


@torch.no_grad()
def test_a_torchvision_vit_has_token_maps(tmp_path):
    reference = torchvision.models.VisionTransformer(224, 16, 2, 2, 32, 64).eval()
    from deitkit.teachers.sources.torchvision_model import TorchvisionBackbone

    pooled, *maps = TorchvisionBackbone(reference, (224, 224))(random_images(224))
    assert pooled.shape == (3, 1000) and [tuple(m.shape) for m in maps] == [(3, 32, 14, 14)] * 2


def transformers_models():
    import transformers as t

    shape = {"hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 2, "intermediate_size": 64}
    vit = shape | {"image_size": SIZE, "patch_size": 8}
    stages = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
    text = {k: v for k, v in shape.items()}
    return {
        "vit": (t.ViTForImageClassification, t.ViTConfig(**vit, num_labels=5)),
        "deit": (t.DeiTForImageClassificationWithTeacher, t.DeiTConfig(**vit, num_labels=5)),
        "dinov2": (t.Dinov2Model, t.Dinov2Config(**vit)),
        "dinov2 registers": (t.Dinov2WithRegistersModel, t.Dinov2WithRegistersConfig(**vit)),
        "clip": (t.CLIPModel, t.CLIPConfig(vision_config=vit, text_config=text)),
        "siglip": (t.SiglipVisionModel, t.SiglipVisionConfig(**vit)),
        "convnext": (t.ConvNextForImageClassification, t.ConvNextConfig(**stages, num_labels=5)),
        "resnet": (
            t.ResNetForImageClassification,
            t.ResNetConfig(embedding_size=8, layer_type="basic", **stages, num_labels=5),
        ),
    }


def saved_by_transformers(name: str, folder, **processor):
    import transformers as t

    cls, config = transformers_models()[name]
    torch.manual_seed(0)
    model = cls(config).eval()
    model.save_pretrained(folder)
    options = {"size": {"height": SIZE, "width": SIZE}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2] * 3}
    t.ViTImageProcessor(**options | processor).save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "name", ["vit", "deit", "dinov2", "dinov2 registers", "clip", "siglip", "convnext", "resnet"]
)
@torch.no_grad()
def test_transformers(tmp_path, name):
    reference = saved_by_transformers(name, tmp_path / "m")
    model = opened(f"hf:{tmp_path / 'm'}")
    view = model.preprocessing
    assert (view.image_size, view.mean, view.std) == ((SIZE, SIZE), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    found, maps = answer(model, random_images())
    images = normalised(random_images(), view)
    if name == "clip":
        reference = reference.vision_model
    said = reference(pixel_values=images)
    expected = said.logits if hasattr(said, "logits") else said.pooler_output
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (model.head is None) == (not hasattr(said, "logits"))
    tokens = name not in ("convnext", "resnet")
    assert [m.shape[-1] for m in maps] == ([4, 4] if tokens else [4, 2])


def test_a_random_head_of_transformers_is_left_out(tmp_path):
    """A backbone whose configuration calls it a classifier."""
    import transformers as t

    saved_by_transformers("vit", tmp_path / "m")
    folder = f"hf:{tmp_path / 'm'}"
    assert opened(folder).head is not None
    _, config = transformers_models()["vit"]
    t.ViTModel(config).save_pretrained(tmp_path / "m")
    saved = json.loads((tmp_path / "m" / "config.json").read_text())
    saved["architectures"] = ["ViTForImageClassification"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(saved))
    assert opened(folder).head is None


def test_transformers_weights_that_lack_a_part(tmp_path):
    from safetensors.torch import load_file

    saved_by_transformers("vit", tmp_path / "m")
    state = load_file(tmp_path / "m" / "model.safetensors")
    del state["vit.embeddings.patch_embeddings.projection.weight"]
    save_file(state, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    with pytest.raises(DeitkitError, match=r"lack vit\.embeddings\.patch_embeddings"):
        opened(f"hf:{tmp_path / 'm'}")


def test_a_folder_that_does_not_say_how_images_are_normalised(tmp_path):
    saved_by_transformers("vit", tmp_path / "m")
    (tmp_path / "m" / "preprocessor_config.json").unlink()
    with pytest.raises(DeitkitError, match="does not say how images are normalised"):
        opened(f"hf:{tmp_path / 'm'}")


@torch.no_grad()
def test_a_transformers_vit_at_another_size(tmp_path):
    saved_by_transformers("vit", tmp_path / "m")
    model = opened(f"hf:{tmp_path / 'm'}", 48)
    assert model.preprocessing.image_size == (48, 48)
    assert answer(model, random_images(48))[1][0].shape[-1] == 6


@pytest.mark.parametrize("softmax", [False, True])
def test_onnx(tmp_path, softmax):
    model = opened(f"onnx:{onnx_file(tmp_path / 'a.onnx', softmax=softmax)}")
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    logits = normalised(random_images(), model.preprocessing).mean((2, 3)) @ weight
    found, maps = answer(model, random_images())
    torch.testing.assert_close(found, logits.log_softmax(1) if softmax else logits, rtol=1e-4, atol=1e-5)
    assert maps == [] and model.outputs is None


def test_an_exported_student_brings_its_classes(tmp_path, random_run):
    import deitkit
    from deitkit.deploy.exporter import export_run

    path = tmp_path / "student.onnx"
    export_run(random_run, "onnx", path)
    model = opened(f"onnx:{path}", None)
    assert model.outputs == ("cat", "dog") and model.preprocessing.image_size == (16, 24)
    images = torch.rand(2, 3, 16, 24)
    classifier = deitkit.load(random_run, device="cpu", backend="pytorch")
    expected = classifier.backend(images)[0]
    torch.testing.assert_close(answer(model, images)[0].softmax(1), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_run_answers_with_both_heads(random_run):
    model = opened(f"run:{random_run}", None)
    student, saved = read_student(random_run)
    images = torch.rand(2, 3, 16, 24)
    found, maps = answer(model, images)
    joint = joint_probabilities(student.eval()(normalised(images, model.preprocessing)))
    torch.testing.assert_close(found.softmax(1), joint, rtol=1e-4, atol=1e-5)
    assert model.outputs == saved.classes and model.preprocessing.crop == 0.9
    assert [tuple(m.shape) for m in maps] == [(2, 16, 2, 3)] * 2


def test_a_callable_sees_the_students_views_as_they_are():
    model = opened("python:tests.teachers.models:mean_colour", None)
    assert model.outputs == ("red", "green", "blue") and model.preprocessing.image_size == (SIZE, SIZE)
    found, maps = answer(model, random_images())
    torch.testing.assert_close(found, random_images().mean((2, 3)))
    assert maps == []
