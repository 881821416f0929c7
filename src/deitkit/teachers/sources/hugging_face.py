"""hf:NAME_OR_FOLDER: image classifiers and vision backbones of transformers."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from timm.data import ImageNetInfo
from torch import Tensor, nn

from ...errors import WeightsError
from ...preprocessing import INTERPOLATIONS, InputSize, Preprocessing
from ..pretrained import Pretrained, as_map, count_params, pick_levels

SYNTAX = "hf:NAME_OR_FOLDER"
ABOUT = "an image classifier or a vision backbone of transformers (ViT, DINOv2, SigLIP, CLIP, ConvNeXt...)"
PACKAGE = "transformers"


class HubBody(nn.Module):
    """Normalised images -> pooled features (B, F), and two maps where the model keeps hidden states."""

    def __init__(self, model: Any, image_size: tuple[int, int], *, pooler: bool, any_size: bool):
        super().__init__()
        self.model, self.pooler = model, pooler
        self.more = {"interpolate_pos_encoding": True} if any_size else {}
        try:
            with torch.inference_mode():
                hidden = self._hidden(self._answer(torch.zeros(1, 3, *image_size)))
        except RuntimeError as error:
            size = f"{image_size[0]} x {image_size[1]}"
            raise WeightsError(f"the model does not take images of {size} pixels: {error}") from None
        self.levels = pick_levels([image_size[1] / m.shape[-1] for m in hidden]) if hidden else []

    def _answer(self, images: Tensor) -> Any:
        return self.model(pixel_values=images, output_hidden_states=True, return_dict=True, **self.more)

    @staticmethod
    def _hidden(answer: Any) -> list[Tensor]:
        """What the blocks give, as maps; the embedding before the first block is left out."""
        shaped = getattr(answer, "reshaped_hidden_states", None) or getattr(answer, "hidden_states", None)
        return [as_map(hidden) for hidden in (shaped or ())[1:]]

    def _pooled(self, answer: Any) -> Tensor:
        if hasattr(answer, "logits"):  # its head is taken out: these are the features
            return answer.logits.flatten(1)
        if self.pooler and getattr(answer, "pooler_output", None) is not None:
            return answer.pooler_output.flatten(1)
        last = answer.last_hidden_state
        return last[:, 0] if last.ndim == 3 else last.mean((2, 3))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        answer = self._answer(images)
        hidden = self._hidden(answer) if self.levels else []
        return self._pooled(answer), *(hidden[i] for i in self.levels)


def check(rest: str) -> None:
    """Raises DeitkitError where transformers is missing, and for a folder without a model."""
    if importlib.util.find_spec("transformers") is None:
        raise WeightsError("hf: teachers need transformers; install it with: pip install transformers")
    if Path(rest).is_dir() and not (Path(rest) / "config.json").is_file():
        raise WeightsError(f"{rest} holds no model of transformers: there is no config.json in it")
    if not Path(rest).exists() and (rest.startswith((".", "/", "~")) or rest.count("/") != 1):
        raise WeightsError(
            f"there is no folder {rest}, and a name on the hub is OWNER/NAME; give one of both"
        )


def open_model(rest: str, wanted: InputSize) -> Pretrained:
    """The model with its trained weights; what the file lacks must be a head, which is then left out."""
    check(rest)
    config, model, missing = _load(rest)
    vision = getattr(config, "vision_config", config)
    view = _preprocessing(rest, vision, wanted)
    head, names = _take_head(model, missing), getattr(config, "id2label", None) or {}
    any_size = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    own = getattr(vision, "image_size", None)
    if not any_size and hasattr(vision, "patch_size") and hasattr(vision, "num_attention_heads"):
        _refuse_other_size(rest, own, view.image_size)
    body = HubBody(
        model.eval(),
        view.image_size,
        pooler=not any("pooler" in key for key in missing),
        any_size=any_size and view.image_size != (own, own),
    )
    return Pretrained(
        name=Path(rest).name if Path(rest).exists() else rest,
        preprocessing=view,
        body=body,
        head=head,
        outputs=_outputs(names) if head is not None else None,
        params=count_params(model, head),
    )


def _load(rest: str) -> tuple[Any, Any, set[str]]:
    """The configuration, the vision part of the model, and the names of what the weights lack."""
    import transformers

    with _quiet():
        try:
            config = transformers.AutoConfig.from_pretrained(rest)
            classifier = any("ForImageClassification" in name for name in config.architectures or ())
            auto = transformers.AutoModelForImageClassification if classifier else transformers.AutoModel
            model, info = auto.from_pretrained(rest, output_loading_info=True, dtype=torch.float32)
        except Exception as error:  # of the hub, of the disk, of transformers
            raise WeightsError(
                f"the teacher {rest!r} could not be opened by transformers ({type(error).__name__}); check "
                "the name and the network, or give a folder with config.json and model.safetensors"
            ) from None
    missing = set(info["missing_keys"]) | {str(key) for key in info["mismatched_keys"]}
    lacking = sorted(key for key in missing if "classifier" not in key and "pooler" not in key)
    if lacking:
        raise WeightsError(
            f"the weights of {rest} lack {lacking[0]} and {len(lacking) - 1} others, which would be random; "
            "give the model's own weights"
        )
    if not classifier:
        model = getattr(model, "vision_model", model)  # CLIP and SigLIP also read text
    return config, model, missing


def _take_head(model: Any, missing: set[str]) -> nn.Module | None:
    """The trained classifier, taken out of the model; None where there is none."""
    if not any("ForImageClassification" in base.__name__ for base in type(model).__mro__):
        return None
    head = getattr(model, "classifier", None)
    if head is None:  # two heads whose logits it averages: the logits are the features
        return nn.Identity()
    model.classifier = nn.Identity()
    trained = not any("classifier" in key for key in missing)
    return head if trained and not isinstance(head, nn.Identity) else None


def _outputs(names: dict[Any, str]) -> tuple[str, ...] | None:
    """The names in the configuration; ImageNet's where it has a thousand that say nothing."""
    listed = tuple(names[k] for k in sorted(names, key=int))
    if all(name == f"LABEL_{i}" for i, name in enumerate(listed)):
        return tuple(ImageNetInfo().label_names()) if len(listed) == 1000 else None
    return listed


def _preprocessing(rest: str, config: Any, wanted: InputSize) -> Preprocessing:
    """What the image processor beside the weights says."""
    import transformers

    try:
        with _quiet():
            says = transformers.AutoImageProcessor.from_pretrained(rest).to_dict()
        mean, std = tuple(says["image_mean"]), tuple(says["image_std"])
    except Exception:  # there is none, or one of another kind
        raise WeightsError(
            f"{rest} does not say how images are normalised (there is no preprocessor_config.json that "
            "can be read); save the model's image processor beside its weights"
        ) from None
    size, cut = _side(says.get("size")), _side(says.get("crop_size"))
    cropped = bool(says.get("do_center_crop")) and cut is not None
    native = (cut if cropped else size) or getattr(config, "image_size", None) or 224
    crop = cut / size if cropped and cut and size else 1.0
    crop = says.get("crop_pct") or min(crop, 1.0)
    resample = says.get("resample")
    way = INTERPOLATIONS[[0, 2, 3, 4, 5, 1].index(int(resample))] if resample is not None else "bicubic"
    if hasattr(config, "num_attention_heads") or hasattr(config, "num_heads"):
        side = wanted.configured or native  # positions are of one size
        return Preprocessing((side, side), mean, std, crop, way)
    return Preprocessing(wanted.resolve(native), mean, std, crop, way)


def _side(size: Any) -> int | None:
    if isinstance(size, int):
        return size
    sides = [size[k] for k in ("height", "shortest_edge") if size and size.get(k)] if size else []
    return int(sides[0]) if sides else None


def _refuse_other_size(rest: str, own: int | None, asked: tuple[int, int]) -> None:
    if own is not None and asked != (own, own):
        raise WeightsError(f"{rest} takes {own} pixels a side only; leave out teacher.image_size")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and reports, which are for its developers."""
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
