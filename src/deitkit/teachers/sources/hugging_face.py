"""hf:NAME_OR_FOLDER: image classifiers and vision backbones of transformers."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import WeightsError, on_one_line
from ...preprocessing import InputSize, Preprocessing
from ...weights.hub import cause, hub_access
from ..classes import imagenet_ids
from ..pretrained import Pretrained, TeacherSource, as_map, count_params, feature_levels, register

_PILLOW_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's number


class HubBackbone(nn.Module):
    """Normalised images -> pooled features (B, F), and two feature maps if there are hidden states."""

    def __init__(self, model: Any, image_size: tuple[int, int], *, pooler: bool, any_size: bool):
        super().__init__()
        self.model, self.pooler = model, pooler
        self.more = {"interpolate_pos_encoding": True} if any_size else {}
        try:
            with torch.inference_mode():
                maps = self._maps(self._run(torch.zeros(1, 3, *image_size)))
        except RuntimeError as error:
            size, why = f"{image_size[0]} x {image_size[1]}", on_one_line(error)
            raise WeightsError(f"the model does not take images of {size} pixels: {why}") from None
        self.levels = feature_levels([image_size[1] / m.shape[-1] for m in maps]) if maps else []

    def _run(self, images: Tensor) -> Any:
        return self.model(pixel_values=images, output_hidden_states=True, return_dict=True, **self.more)

    @staticmethod
    def _maps(output: Any) -> list[Tensor]:
        """The outputs of the blocks as maps, without the embedding before the first block."""
        hidden = getattr(output, "reshaped_hidden_states", None) or getattr(output, "hidden_states", None)
        return [as_map(states) for states in (hidden or ())[1:]]

    def _pooled(self, output: Any) -> Tensor:
        if hasattr(output, "logits"):  # the head was replaced by an identity, so these are the features
            features: Tensor = output.logits.flatten(1)
        elif self.pooler and getattr(output, "pooler_output", None) is not None:
            features = output.pooler_output.flatten(1)
        else:
            last = output.last_hidden_state
            features = last[:, 0] if last.ndim == 3 else last.mean((2, 3))
        return features

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        output = self._run(images)
        maps = self._maps(output) if self.levels else []
        return self._pooled(output), *(maps[i] for i in self.levels)


@register
class HuggingFaceSource(TeacherSource):
    name = "hf"
    syntax = "hf:NAME_OR_FOLDER"
    about = (
        "an image classifier or a vision backbone of transformers (ViT, DINOv2, SigLIP, CLIP, ConvNeXt...)"
    )
    package = "transformers"

    def check(self, model: str) -> None:
        if importlib.util.find_spec("transformers") is None:
            raise WeightsError("hf: teachers need transformers; install it with: pip install transformers")
        if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
            raise WeightsError(f"{model} holds no model of transformers: there is no config.json in it")
        if not Path(model).exists() and (model.startswith((".", "/", "~")) or model.count("/") != 1):
            raise WeightsError(
                f"there is no folder {model}, and a name on the hub is OWNER/NAME; give one of both"
            )

    def open(self, model: str, size: InputSize, *, trust_remote_code: bool = False) -> Pretrained:
        """The model, without a head if the head has no trained weights."""
        self.check(model)
        with _quiet(), hub_access() as online:
            config, network, missing = _load(model, online, trust_remote_code)
            vision = getattr(config, "vision_config", config)
            view = _preprocessing(model, vision, size, trust_remote_code)
        head, names = _take_head(network, missing), getattr(config, "id2label", None) or {}
        any_size = "interpolate_pos_encoding" in inspect.signature(network.forward).parameters
        native = getattr(vision, "image_size", None)
        if not any_size and hasattr(vision, "patch_size") and hasattr(vision, "num_attention_heads"):
            _refuse_other_size(model, native, view.image_size)
        backbone = HubBackbone(
            network.eval(),
            view.image_size,
            pooler=not any("pooler" in key for key in missing),
            any_size=any_size and view.image_size != (native, native),
        )
        return Pretrained(
            name=Path(model).name if Path(model).exists() else model,
            preprocessing=view,
            backbone=backbone,
            head=head,
            outputs=_outputs(names) if head is not None else None,
            params=count_params(network, head),
        )

    def absolute(self, model: str) -> str:
        return str(Path(model).resolve()) if Path(model).exists() else model


def _load(name: str, online: bool, trust_remote_code: bool) -> tuple[Any, Any, set[str]]:
    """The configuration, the vision part of the model, and the keys that the weights lack."""
    import transformers

    try:
        if not trust_remote_code:
            _refuse_code(name)
        # Never None, which asks on the terminal whether to run the model's own code.
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
        classifier = any("ForImageClassification" in cls for cls in config.architectures or ())
        auto = transformers.AutoModelForImageClassification if classifier else transformers.AutoModel
        model, info = auto.from_pretrained(
            name, output_loading_info=True, dtype=torch.float32, trust_remote_code=trust_remote_code
        )
    except WeightsError:
        raise
    except Exception as error:  # of the hub, of the disk, of transformers
        raise WeightsError(
            f"the teacher {name!r} could not be opened by transformers ({cause(error, online)}); check "
            "the name and the network, or give a folder with config.json and model.safetensors"
        ) from None
    missing = set(info["missing_keys"]) | {str(key) for key in info["mismatched_keys"]}
    random = sorted(key for key in missing if "classifier" not in key and "pooler" not in key)
    if random:
        raise WeightsError(
            f"the weights of {name} lack {random[0]} and {len(random) - 1} others, which would be random; "
            "give the model's own weights"
        )
    if not classifier:
        model = getattr(model, "vision_model", model)  # CLIP and SigLIP also have a text model
    return config, model, missing


def _refuse_code(name: str) -> None:
    """Raises WeightsError if the model's configuration names code of its own."""
    import transformers

    config, _ = transformers.PretrainedConfig.get_config_dict(name)
    foreign = "auto_map" in config and config.get("model_type") not in transformers.CONFIG_MAPPING
    if foreign or _names_a_kernel(config):
        raise WeightsError(
            f"the model {name} comes with Python code of its own, which is not run; add --trust-remote-code "
            "if you trust it"
        )


def _names_a_kernel(config: Any) -> bool:
    """Whether an attention implementation is a repository (OWNER/NAME), whose code would be downloaded."""
    if not isinstance(config, dict):
        return False
    wanted = [config.get("attn_implementation"), config.get("_attn_implementation")]
    return "/" in str(wanted) or any(map(_names_a_kernel, config.values()))


def _take_head(model: Any, missing: set[str]) -> nn.Module | None:
    """Removes the classifier and returns it; None if there is none or its weights are missing."""
    if not any("ForImageClassification" in base.__name__ for base in type(model).__mro__):
        return None
    head = getattr(model, "classifier", None)
    if head is None:  # DeiT averages the logits of two heads: use the logits as features
        return nn.Identity()
    model.classifier = nn.Identity()
    trained = not any("classifier" in key for key in missing)
    return head if trained and not isinstance(head, nn.Identity) else None


def _outputs(names: dict[Any, str]) -> tuple[str, ...] | None:
    """The names in the configuration; ImageNet's ids for a thousand placeholders."""
    listed = tuple(names[k] for k in sorted(names, key=int))
    if all(name == f"LABEL_{i}" for i, name in enumerate(listed)):
        return imagenet_ids(len(listed))
    return listed


def _preprocessing(name: str, config: Any, size: InputSize, trust_remote_code: bool) -> Preprocessing:
    """The preprocessing of the image processor that is saved with the weights."""
    import transformers

    try:
        processor = transformers.AutoImageProcessor.from_pretrained(name, trust_remote_code=trust_remote_code)
        saved = processor.to_dict()
        mean, std = tuple(map(float, saved["image_mean"])), tuple(map(float, saved["image_std"]))
        resized, cropped = _side(saved.get("size")), _side(saved.get("crop_size"))
        resample = saved.get("resample")
        interpolation = "bicubic" if resample is None else _PILLOW_FILTERS[int(resample)]
    except Exception:  # there is none, or it has no normalisation
        raise WeightsError(
            f"{name} does not say how images are normalised (there is no preprocessor_config.json that "
            "can be read); save the model's image processor with its weights"
        ) from None
    if not saved.get("do_center_crop"):
        cropped = None
    native = cropped or resized or getattr(config, "image_size", None) or 224
    crop = saved.get("crop_pct") or (min(cropped / resized, 1.0) if cropped and resized else 1.0)
    if hasattr(config, "num_attention_heads") or hasattr(config, "num_heads"):
        side = size.configured or native  # a transformer keeps the size of its position embeddings
        return Preprocessing((side, side), mean, std, crop, interpolation)
    return Preprocessing(size.resolve(native), mean, std, crop, interpolation)


def _side(size: Any) -> int | None:
    """Pixels of an image processor's `size`: a number, or one with `height` or `shortest_edge`."""
    if isinstance(size, int):
        return size
    sides = [size[k] for k in ("height", "shortest_edge") if size.get(k)] if size else []
    return int(sides[0]) if sides else None


def _refuse_other_size(name: str, native: int | None, asked: tuple[int, int]) -> None:
    if native is not None and asked != (native, native):
        raise WeightsError(f"{name} takes {native} pixels a side only; leave out teacher.image_size")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences transformers' progress bars and loading reports, which are for its developers."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
