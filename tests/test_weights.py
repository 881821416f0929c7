"""Weights in from every style of file, fitted to other shapes, and out again with the same logits."""

import argparse
import json
import math

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed

from deitkit import weights
from deitkit.errors import DeitkitError
from deitkit.model import DeiT, joint_logits

PREPROCESSING = {
    "image_size": [16, 32],
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.25, 0.3],
    "interpolation": "bicubic",
    "crop": 1.0,
}
CLASSES = ["cat", "dog", "eel", "fox", "gnu"]


def little(seed=0, **changes) -> DeiT:
    """A small model whose parameters are all random; 4 x 4 patches, the same number as a 2 x 8 grid has."""
    settings = dict(image_size=(16, 32), patch_size=(4, 8), num_classes=5, embed_dim=32, depth=2, num_heads=4)
    model = DeiT(**(settings | changes)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return model


def images_for(model: DeiT) -> torch.Tensor:
    return torch.randn(2, 3, *model.image_size, generator=torch.Generator().manual_seed(1))


def assert_same(state, expected):
    assert set(state) == set(expected)
    for k in expected:
        torch.testing.assert_close(state[k], expected[k], rtol=0, atol=0, msg=k)


def assert_agrees(actual, expected, tolerance=1e-5):
    """Equal up to an absolute difference, which `pytest -rP` shows."""
    difference = np.abs(np.asarray(actual.detach()) - np.asarray(expected)).max()
    print(f"largest difference: {difference:.1e}")
    assert difference < tolerance


# ------------------------------------------------------------------------------------------- reading


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


# ------------------------------------------------------------------------------------------- fitting


def test_weights_that_fit_are_loaded_without_a_word():
    source, target = little(0), little(1)
    assert weights.load_into(target, source.state_dict()) == []
    assert_same(target.state_dict(), source.state_dict())


def test_plain_to_distilled_copies_the_class_token():
    source, target = little(0, distilled=False), little(1)
    [sentence] = weights.load_into(target, weights_of(source))
    assert (
        sentence == "the distillation token, its position and its head start as copies of the class token's"
    )
    torch.testing.assert_close(target.dist_token, source.cls_token)
    torch.testing.assert_close(target.pos_embed[:, 1], source.pos_embed[:, 0])
    torch.testing.assert_close(target.pos_embed[:, 2:], source.pos_embed[:, 1:])
    output = target(images_for(target))
    torch.testing.assert_close(output.class_logits, output.distill_logits)


def test_distilled_to_plain_leaves_the_token_out():
    source, target = little(0), little(1, distilled=False)
    [sentence] = weights.load_into(target, weights_of(source))
    assert "left out" in sentence
    torch.testing.assert_close(target.pos_embed[:, 0], source.pos_embed[:, 0])
    torch.testing.assert_close(target.pos_embed[:, 1:], source.pos_embed[:, 2:])
    torch.testing.assert_close(target.head.weight, source.head.weight)


@pytest.mark.parametrize("distilled", [True, False])
def test_other_classes_start_the_heads_afresh(distilled):
    source, target = little(0, distilled=distilled), little(1, num_classes=300)
    sentences = weights.load_into(target, source.state_dict())
    assert [s for s in sentences if s.startswith("head starts afresh for 300 classes")]
    assert [s for s in sentences if s.startswith("head_dist starts afresh for 300 classes")]
    assert target.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not torch.equal(target.head.weight, target.head_dist.weight)
    assert (target.head_dist.bias == 0).all()
    torch.testing.assert_close(target.blocks[1].mlp.fc2.weight, source.blocks[1].mlp.fc2.weight)


def weights_of(model: DeiT) -> weights.Weights:
    out = weights.Weights(model.state_dict())
    out.grid_size = model.grid_size
    return out


def test_the_grid_counts_even_where_the_number_of_patches_agrees():
    """4 x 4 and 2 x 8 patches are 16 both; copied over, every row would land in the wrong place."""
    source, target = little(0), little(1, image_size=(8, 64))
    [sentence] = weights.load_into(target, weights_of(source))
    assert sentence == "the position embeddings were resized from 4x4 to 2x8 patches"
    expected = weights.resize_positions(source.pos_embed, 2, (4, 4), (2, 8))
    torch.testing.assert_close(target.pos_embed, expected)


def test_an_untold_grid_is_taken_as_square_and_says_so():
    source, target = little(0), little(1, image_size=(32, 64))
    [sentence] = weights.load_into(target, source.state_dict())
    assert sentence == (
        "the position embeddings were resized from 4x4 (taken to be so from their number) to 8x8 patches"
    )


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("new_grid", [(24, 24), (8, 12), (14, 14)])
def test_resize_positions_as_timm_does(new_grid, antialias):
    positions = torch.randn(1, 2 + 14 * 14, 8)
    expected = resample_abs_pos_embed(
        positions, list(new_grid), [14, 14], num_prefix_tokens=2, antialias=antialias
    )
    actual = weights.resize_positions(positions, 2, (14, 14), new_grid, antialias)
    assert_agrees(actual, expected)


def bicubic(x, size):
    """Along the first axis: Keys' kernel with a = -0.75, half-pixel centres, the border repeated."""

    def kernel(t):
        t = abs(t)
        near = 1.25 * t**3 - 2.25 * t**2 + 1
        return near if t <= 1 else (-0.75 * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0)

    n, out = len(x), []
    for i in range(size):
        at = (i + 0.5) * n / size - 0.5
        taps = range(math.floor(at) - 1, math.floor(at) + 3)
        out.append(sum(kernel(at - tap) * x[min(max(tap, 0), n - 1)] for tap in taps))
    return np.stack(out)


@pytest.mark.parametrize("new_grid", [(8, 12), (3, 7)])
def test_resize_positions_of_a_non_square_grid(new_grid):
    positions = torch.randn(1, 1 + 4 * 6, 5)
    grid = positions[0, 1:].double().numpy().reshape(4, 6, 5)
    expected = bicubic(bicubic(grid, new_grid[0]).swapaxes(0, 1), new_grid[1]).swapaxes(0, 1)
    resized = weights.resize_positions(positions, 1, (4, 6), new_grid)
    torch.testing.assert_close(resized[:, 0], positions[:, 0])
    assert_agrees(resized[0, 1:], expected.reshape(-1, 5))


@pytest.mark.parametrize("patch_size", [(8, 16), (2, 4), (4, 4)])
def test_another_patch_size_keeps_the_size_of_the_tokens(patch_size):
    """An even kernel on an even image must give the same token whatever the number of its pixels."""
    source = little(0)
    with torch.no_grad():
        source.patch_embed.proj.weight.copy_(torch.randn(32, 3, 1, 1).expand(32, 3, 4, 8))
    target = little(1, patch_size=patch_size, image_size=(patch_size[0] * 4, patch_size[1] * 4))
    [sentence] = weights.load_into(target, weights_of(source))
    assert sentence == f"the patch kernels were resized from 4x8 to {patch_size[0]}x{patch_size[1]} pixels"
    grey = torch.tensor([0.3, -0.5, 0.9]).view(1, 3, 1, 1)
    tokens = [m.patch_embed(grey.expand(1, 3, *m.image_size))[0, 0] for m in (source, target)]
    torch.testing.assert_close(tokens[1], tokens[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 64}, "32 wide and 2 deep, the student is 64 wide and 2 deep; choose"),
        ({"depth": 3}, "32 wide and 2 deep, the student is 32 wide and 3 deep; choose"),
        ({"mlp_ratio": 2.0}, r"'blocks\.0\.mlp\.fc1\.weight' is \(128, 32\) in the weights and \(64, 32\)"),
        ({"in_channels": 1}, r"'patch_embed\.proj\.weight' is \(32, 3\) in the weights and \(32, 1\)"),
    ],
)
def test_another_body_is_refused(changes, message):
    with pytest.raises(DeitkitError, match=message):
        weights.load_into(little(**changes), little().state_dict())


def test_layers_that_the_model_lacks_are_refused():
    state = little().state_dict() | {"blocks.0.attn.q_norm.weight": torch.ones(8)}
    with pytest.raises(DeitkitError, match=r"an extra 'blocks\.0\.attn\.q_norm\.weight'"):
        weights.load_into(little(), state)
    state = little().state_dict()
    del state["norm.bias"]
    with pytest.raises(DeitkitError, match=r"no 'norm\.bias'"):
        weights.load_into(little(), state)


# ------------------------------------------------------------------------------------------ exporting

SHAPES = [
    pytest.param({}, id="distilled"),
    pytest.param({"distilled": False}, id="plain"),
    pytest.param({"image_size": (8, 64)}, id="non-square"),
    pytest.param({"image_size": (16, 16), "patch_size": (4, 4), "mlp_ratio": 3.0}, id="square"),
]


def exported(model, folder, to):
    return weights.export(model, folder, to, PREPROCESSING | {"image_size": list(model.image_size)}, CLASSES)


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
    assert [list(seen[k]) for k in ("mean", "std")] == [PREPROCESSING[k] for k in ("mean", "std")]
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
    """A picture of the model's own size passes both resizes untouched, so the pixels must agree exactly."""
    transformers = pytest.importorskip("transformers")
    model = little(image_size=(16, 16), patch_size=(4, 4))
    exported(model, tmp_path, "transformers")
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    seen = processor(Image.fromarray(pixels), return_tensors="pt").pixel_values[0]
    expected = (pixels / 255 - PREPROCESSING["mean"]) / PREPROCESSING["std"]
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
    from deitkit.delivery import classifier

    model = little()
    exported(model, tmp_path, "deitkit")
    loaded = classifier.load(tmp_path, device="cpu")
    assert loaded.classes == tuple(CLASSES)
    images = images_for(model)
    torch.testing.assert_close(loaded.model(images), model(images))


def test_export_refuses_unknown_formats_and_miscounted_classes(tmp_path):
    with pytest.raises(DeitkitError, match="cannot export to 'caffe'; choose one of deitkit, timm"):
        weights.export(little(), tmp_path, "caffe", PREPROCESSING, CLASSES)
    with pytest.raises(DeitkitError, match="4 class names for 5 outputs"):
        weights.export(little(), tmp_path, "timm", PREPROCESSING, CLASSES[:4])
