"""Where `--init auto` looks, in which order, and that it neither hangs nor fails without a network."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import deitkit
from deitkit import recipes, weights
from deitkit.data.dataset import find_splits
from deitkit.errors import DeitkitError
from deitkit.models.deit import VARIANTS, create_model
from deitkit.training.resolve import resolve, resolve_initial_weights
from deitkit.weights import initial as pretrained

TIMM = "timm/deit_tiny_distilled_patch16_224.fb_in1k"


@pytest.fixture
def empty_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    return tmp_path / "hub"


@pytest.fixture
def no_network(monkeypatch) -> list[str]:
    """Notes whom a lookup would have asked, and refuses."""
    asked: list[str] = []

    def refuse(name: str) -> bool:
        asked.append(name)
        return False

    monkeypatch.setattr(pretrained, "_on_hub", refuse)
    return asked


def put_into_cache(hub: Path, name: str) -> torch.nn.Module:
    """A model in the hub's own layout of its cache."""
    model = create_model("tiny", num_classes=1000)
    folder = hub / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    save_file(model.state_dict(), folder / "snapshots" / ("0" * 40) / "model.safetensors")
    return model


def test_what_is_cached_is_taken_without_asking_the_hub(empty_cache, no_network):
    model = put_into_cache(empty_cache, TIMM)
    init, why = weights.find_initial("tiny")
    assert init == f"hf:{TIMM}" and "local cache" in why and no_network == []
    read = weights.read(init)
    assert all(torch.equal(read[k], v) for k, v in model.state_dict().items())


def test_weights_of_transformers_in_the_cache_serve_as_well(empty_cache, no_network):
    put_into_cache(empty_cache, "facebook/deit-tiny-distilled-patch16-224")
    assert weights.find_initial("tiny")[0] == "hf:facebook/deit-tiny-distilled-patch16-224"


def test_the_hub_is_asked_for_the_distilled_weights(empty_cache, monkeypatch):
    monkeypatch.setattr(pretrained, "_on_hub", lambda name: True)
    assert weights.find_initial("tiny") == (f"hf:{TIMM}", f"initial weights: {TIMM}, from the hub")


def test_without_a_network_it_starts_from_scratch_and_says_what_that_costs(empty_cache, no_network):
    init, why = weights.find_initial("small")
    assert init == "none" and no_network == ["timm/deit_small_distilled_patch16_224.fb_in1k"]
    assert "is unreachable" in why and "from scratch" in why and "\n" not in why


def test_nothing_is_published_for_nano_and_nobody_is_asked(empty_cache, no_network, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "shipped_file", lambda student: tmp_path / "missing")
    init, why = weights.find_initial("nano")
    assert init == "none" and no_network == [] and "there are no published weights for nano" in why


def test_weights_in_the_package_come_first(empty_cache, no_network):
    init, why = weights.find_initial("nano")
    assert init == "deitkit:nano" and "comes with deitkit" in why and no_network == []
    file = pretrained.shipped_file("nano")
    assert file.stat().st_size < 6e6 and file.with_suffix(".json").is_file()
    model = create_model("nano", num_classes=3, image_size=96, patch_size=12)
    changes = weights.load_into(model, weights.read(init))
    assert any("patch kernels are resized from 8x8 to 12x12" in change for change in changes)
    torch.testing.assert_close(model.dist_token, model.cls_token)


def test_a_student_without_weights_in_the_package_is_refused():
    with pytest.raises(DeitkitError, match=r"no weights 'deitkit:base' come with deitkit"):
        weights.read("deitkit:base")


def test_a_hub_that_does_not_answer_costs_seconds(monkeypatch):
    """A server that takes the connection and stays silent, as behind a broken proxy."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setattr(pretrained, "_ANSWER_SECONDS", 1.0)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/{filename}"
        )
        started = time.monotonic()
        assert not pretrained._on_hub(TIMM)
        assert 0.4 < time.monotonic() - started < 3  # it did wait, and gave up


@pytest.mark.parametrize("name", VARIANTS)
def test_published_names_are_timms(name):
    for published in weights.PUBLISHED[name]:
        config = timm.get_pretrained_cfg(published.timm)
        assert config.input_size == (3, published.image_size, published.image_size)
        assert config.hf_hub_id == f"timm/{published.timm}" or config.hf_hub_id == "timm/"
        assert (
            ("distilled" in published.timm) == published.distilled == ("distilled" in published.transformers)
        )


def test_auto_is_resolved_once_and_a_resumed_run_keeps_it(image_folder, tmp_path, monkeypatch):
    """By the second call there could be weights; the run goes on with what it began with."""
    asked = recipes.get("small-data").override({"student.name": "nano"})
    config = resolve(asked, find_splits(image_folder, asked.data), torch.device("cpu"))
    begun = resolve_initial_weights(config, None)
    assert begun.student.initial_weights == "deitkit:nano"
    monkeypatch.setattr("deitkit.training.resolve.find_initial", lambda name: pytest.fail("asked again"))
    assert resolve_initial_weights(config, begun) == begun
    out = tmp_path / "run"
    out.mkdir()
    (out / "settings.json").write_text(json.dumps(begun.to_dict()))
    (out / "plan.json").write_text('{"epochs": 1}')
    settings = {
        "student__name": "nano",
        "student__initial_weights": "auto",
        "teacher__spec": "none",
        "train__device": "cpu",
    }
    with pytest.raises(DeitkitError, match="cannot resume") as refused:
        deitkit.train(image_folder, out, resume=True, train__seed=5, **settings)
    assert "student.initial_weights" not in str(refused.value)
