"""Weights in from every style of file."""

import argparse

import pytest
import timm
import torch
from safetensors.torch import save_file

from deitkit import weights
from deitkit.errors import DeitkitError
from deitkit.models.deit import DeiT

from .models import assert_agrees, assert_same, little


def bare_pth(model, folder):
    torch.save(model.state_dict(), folder / "a.pth")
    return folder / "a.pth"


def official_training_checkpoint(model, folder):
    arguments = argparse.Namespace(lr=5e-4, model="deit_tiny_patch16_224")
    torch.save({"model": model.state_dict(), "args": arguments, "epoch": 3}, folder / "a.pth")
    return folder / "a.pth"


def parallel_and_compiled(model, folder):
    state = {f"_orig_mod.module.{k}": v for k, v in model.state_dict().items()}
    torch.save({"state_dict": state, "arch": "x"}, folder / "a.pth.tar")
    return folder / "a.pth.tar"


def timm_safetensors(model, folder):
    save_file(model.state_dict(), folder / "weights.safetensors")
    return folder / "weights.safetensors"


def transformers_folder_with_old_keys(model, folder):
    state = {k: v.contiguous() for k, v in weights.transformers_keys(model.state_dict()).items()}
    assert "deit.encoder.layer.0.attention.attention.query.weight" in state
    save_file(state, folder / "model.safetensors")
    return folder


def transformers_folder_with_new_keys(model, folder):
    renames = {
        "encoder.layer.": "layers.",
        "attention.attention.query": "attention.q_proj",
        "attention.attention.key": "attention.k_proj",
        "attention.attention.value": "attention.v_proj",
        "attention.output.dense": "attention.o_proj",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
    }
    state = {"deit.pooler.dense.weight": torch.zeros(2, 2)}
    for k, v in weights.transformers_keys(model.state_dict()).items():
        for old, new in renames.items():
            k = k.replace(old, new)
        state[k] = v.contiguous()
    torch.save(state, folder / "pytorch_model.bin")
    return folder


@pytest.mark.parametrize(
    "write",
    [
        bare_pth,
        official_training_checkpoint,
        parallel_and_compiled,
        timm_safetensors,
        transformers_folder_with_old_keys,
        transformers_folder_with_new_keys,
    ],
)
def test_read_gives_published_keys(write, tmp_path):
    model = little()
    assert_same(weights.read(write(model, tmp_path)), model.state_dict())


def test_read_takes_plain_models_of_transformers():
    model = little(distilled=False)
    assert_same(
        weights.published_keys(weights.transformers_keys(model.state_dict())),
        model.state_dict(),
    )


@pytest.mark.parametrize("style", ["timm", "official"])
def test_layer_scale_of_deit3_is_folded(style, tmp_path):
    """Positions without a class token's and LayerScale: the logits stay those of the original."""
    reference = timm.create_model(
        "deit3_small_patch16_224", img_size=64, embed_dim=96, depth=2, num_heads=3, num_classes=5
    ).eval()
    with torch.no_grad():
        for p in reference.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    state = reference.state_dict()
    if style == "official":
        state = {
            k.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for k, v in state.items()
        }
        assert "blocks.0.gamma_1" in state
    torch.save({"model": state}, tmp_path / "deit3.pth")
    model = DeiT(
        image_size=(64, 64),
        patch_size=(16, 16),
        num_classes=5,
        embed_dim=96,
        depth=2,
        num_heads=3,
        distilled=False,
    ).eval()
    assert weights.load_into(model, weights.read(tmp_path / "deit3.pth")) == []
    images = torch.randn(2, 3, 64, 64)
    assert_agrees(model(images).class_logits, reference(images).detach())


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_read_never_runs_what_a_file_says(tmp_path):
    torch.save({"model": little().state_dict(), "trap": Trap(tmp_path / "sprung")}, tmp_path / "a.pth")
    with pytest.raises(DeitkitError, match=r"a\.pth cannot be read.*safetensors"):
        weights.read(tmp_path / "a.pth")
    assert not (tmp_path / "sprung").exists()


def test_read_refuses_what_is_not_there_or_no_model(tmp_path):
    with pytest.raises(DeitkitError, match=r"no weights at .*missing"):
        weights.read(tmp_path / "missing")
    with pytest.raises(DeitkitError, match=r"holds no model\.safetensors"):
        weights.read(tmp_path)
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(DeitkitError, match=r"cut\.safetensors cannot be read"):
        weights.read(tmp_path / "cut.safetensors")
    save_file({"conv.weight": torch.zeros(1)}, tmp_path / "cnn.safetensors")
    with pytest.raises(DeitkitError, match="holds no DeiT: it lacks 'cls_token'"):
        weights.read(tmp_path / "cnn.safetensors")
    with pytest.raises(DeitkitError, match="timm has no model 'deit_gigantic'"):
        weights.read("timm:deit_gigantic")


@pytest.mark.parametrize("source", ["timm:deit_tiny_patch16_224", "hf:somebody/some-deit"])
def test_an_unreachable_hub_gives_one_sentence(source, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DeitkitError, match=f"the hub could not give '{source}'.*give the file's path"):
        weights.read(source)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"config.json": "{"}, "config.json is not JSON"),
        (
            {"config.json": '{"model_type": "vit", "id2label": {"x": 1}}'},
            "does not describe a model as transf",
        ),
        ({"config.json": '{"model_type": "vit", "id2label": [true]}'}, "does not describe a model as transf"),
        ({"config.json": '{"model_type": "vit", "image_size": [1]}'}, "does not describe a model as transf"),
        ({"config.json": '{"architecture": "a", "pretrained_cfg": {"mean": 3}}'}, "a model as timm does"),
        ({"config.json": '{"student": {"depth": "x"}, "classes": ["a"]}'}, "config.json cannot be read"),
    ],
)
def test_a_damaged_description_is_refused(files, sentence, tmp_path):
    save_file(little().state_dict(), tmp_path / "model.safetensors")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DeitkitError, match=sentence):
        weights.read(tmp_path)
