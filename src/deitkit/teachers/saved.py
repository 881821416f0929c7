"""A fitted teacher in a folder: teacher.json describes it, teacher.safetensors has what was fitted.

The pretrained weights of a backbone stay where they came from, unless it was fine-tuned. A folder may come
from a stranger: it is data. Opening it reads weights from the files and hubs that teacher.json names, in
formats that hold tensors only; it never imports code that only the file names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..config import TeacherConfig
from ..errors import DeitkitError, WeightsError
from ..inference.backends import Backend
from ..io import create_folder, parse_json, read_json, write_json, write_tensors
from ..preprocessing import INTERPOLATIONS, InputSize
from ..run_folder import TEACHER_CARD, holds_teacher
from .pretrained import CHOICE_BATCH, Pretrained, backend_builders, choose_backend
from .spec import FITTED, allowed_code, open_member, parse_member, refuse_code
from .teacher import MemberCard, Teacher, TeacherCard, TeacherMember

WEIGHTS = "teacher.safetensors"
_LARGEST_SIDE = 4096  # pixels


def save_teacher(folder: Path, teacher: Teacher) -> None:
    """Writes the fitted heads and the fine-tuned backbones, and then the card."""
    create_folder(folder)
    state: dict[str, Tensor] = {}
    for i, member in enumerate(teacher.members):
        if member.card.head == "linear":
            state |= {f"{i}.head.{key}": value for key, value in member.fitted_head.state_dict().items()}
        if member.card.finetuned:
            assert member.finetuned is not None
            state |= {f"{i}.body.{key}": value for key, value in member.finetuned.state_dict().items()}
    write_tensors(folder / WEIGHTS, state)
    # Last: a folder with a card is a complete teacher.
    write_json(folder / TEACHER_CARD, _card_to_file(teacher.card))


def kept_teacher(
    folder: Path, config: TeacherConfig, device: torch.device, make: Callable[[], Teacher]
) -> Teacher:
    """The teacher saved in `folder`; or else what `make` returns, which is saved there.

    config: the settings typed in this call. `backend` replaces the saved one.
    """
    if holds_teacher(folder):
        return read_teacher(
            folder,
            device=device,
            backend=config.backend,
            code=allowed_code(config),
            trust_remote_code=config.trust_remote_code,
        )
    teacher = make()
    save_teacher(folder, teacher)
    return teacher


def read_teacher(
    folder: str | Path,
    *,
    device: torch.device,
    backend: str = "auto",
    code: Collection[str] = (),
    trust_remote_code: bool = False,
    keep_backbones: bool = False,
) -> Teacher:
    """The teacher that `save_teacher` wrote, with pretrained weights from where they came from.

    backend: "auto" is the saved one, so that outputs stay the same. code: the specs, such as
    `python:MODULE:FUNCTION`, that may run if teacher.json names them; only what the user typed in this call
    belongs here. keep_backbones: keeps the PyTorch networks for an export. Raises WeightsError if a file is
    missing or damaged, and for other code.
    """
    folder = Path(folder)
    card = read_card(folder)
    for member_card in card.members:
        refuse_code(parse_member(member_card.spec), code, folder / TEACHER_CARD)
    state = _read_weights(folder / WEIGHTS)
    members = []
    for i, member_card in enumerate(card.members):
        model = _open_backbone(i, member_card, folder, state, trust_remote_code)
        head = _head(i, member_card, folder, state, model)
        chosen = _saved_backend(model, member_card, backend, device)
        finetuned = model.backbone if member_card.finetuned else None
        backbone = model.backbone if keep_backbones else None
        member = TeacherMember(member_card, chosen, head, finetuned, backbone)
        _check_outputs(member, len(card.classes), folder)
        members.append(member)
    return Teacher(card, members)


def read_card(folder: Path) -> TeacherCard:
    """The description in teacher.json. Raises WeightsError if it is damaged."""
    try:
        card = _card_from_file(read_json(folder / TEACHER_CARD))
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"the teacher in {folder} cannot be read: {TEACHER_CARD}: {error}; fit it again"
        ) from None
    return card


def _card_to_file(card: TeacherCard) -> dict[str, Any]:
    """In the words of version 0.1, which the file keeps."""
    saved = dataclasses.asdict(card)
    saved["several"] = saved.pop("multilabel")
    for member in saved["members"]:
        member["head"] = "own" if member["head"] == "pretrained" else member["head"]
        if member["adjustment"] is None:
            del member["adjustment"]
    return saved


def _card_from_file(saved: Any) -> TeacherCard:
    """The inverse of `_card_to_file`. Raises ValueError, naming the entry, if one is wrong."""
    renamed = {"several": "multilabel"}
    if isinstance(saved, dict):
        saved = {renamed.get(key, key): value for key, value in saved.items()}
        members = saved.get("members")
        for member in members if isinstance(members, list) else ():
            if isinstance(member, dict) and member.get("head") == "own":
                member["head"] = "pretrained"
    card = parse_json(TeacherCard, saved)
    if not card.members or not card.classes or len(set(card.classes)) < len(card.classes):
        raise ValueError("it needs a member, and classes that differ")
    for i, member in enumerate(card.members):
        for what, right in _rules(member, len(card.classes)).items():
            if not right:
                raise ValueError(f"members[{i}].{what} is out of range")
    return card


def _rules(member: MemberCard, num_classes: int) -> dict[str, bool]:
    """What has to hold for each entry of a card, by its name."""
    view, columns = member.preprocessing, member.columns
    return {
        "spec": parse_member(member.spec).source != FITTED,
        "weight": member.weight > 0,
        "params": member.params >= 0,
        "columns": columns is None
        or (len(set(columns)) == len(columns) == num_classes and min(columns) >= 0),
        "adjustment": member.adjustment is None or member.head == "linear",
        "map_channels": len(member.map_channels) in (0, 2) and all(c > 0 for c in member.map_channels),
        "preprocessing.image_size": all(0 < side <= _LARGEST_SIDE for side in view.image_size),
        "preprocessing.mean": len(view.mean) == 3,
        "preprocessing.std": len(view.std) == 3 and all(std > 0 for std in view.std),
        "preprocessing.crop": 0.01 <= view.crop <= 10,
        "preprocessing.interpolation": view.interpolation in INTERPOLATIONS,
    }


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        if not path.is_file():
            raise FileNotFoundError("it is missing")
        return load_file(path)
    except Exception as error:  # safetensors' own, or of the disk
        raise WeightsError(
            f"the teacher in {path.parent} cannot be read: {path.name}: {error}; fit it again"
        ) from None


def _open_backbone(
    i: int, card: MemberCard, folder: Path, state: dict[str, Tensor], trust_remote_code: bool
) -> Pretrained:
    """The member's pretrained model, with the backbone's fine-tuned weights if there are any."""
    view = card.preprocessing
    # A model of one size keeps it; any other runs at the size that its head was fitted at.
    size = InputSize(view.image_size[0], view.image_size)
    model = open_member(parse_member(card.spec), size, trust_remote_code=trust_remote_code)
    if card.finetuned:
        if model.backbone is None:
            raise _mismatch(folder)
        try:
            model.backbone.load_state_dict(_with_prefix(state, f"{i}.body."))
        except RuntimeError:
            raise _mismatch(folder) from None
    return model


def _head(i: int, card: MemberCard, folder: Path, state: dict[str, Tensor], model: Pretrained) -> nn.Module:
    if card.head == "pretrained":
        if model.head is None:
            raise _mismatch(folder)
        return model.head
    fitted = _with_prefix(state, f"{i}.head.")
    try:
        num_outputs, width = fitted["weight"].shape
        if card.adjustment is not None and len(card.adjustment) != num_outputs:
            raise ValueError
        head = nn.Linear(width, num_outputs)
        head.load_state_dict(fitted)
    except (KeyError, ValueError, RuntimeError):
        raise _mismatch(folder) from None
    return head


def _saved_backend(model: Pretrained, card: MemberCard, wanted: str, device: torch.device) -> Backend:
    """The backend `wanted`; for "auto" the saved one if this machine has it."""
    candidates = backend_builders(model, card.preprocessing, device)
    choice = wanted
    if wanted == "auto" and device.type == "cpu" and card.backend in candidates:
        choice = card.backend
    try:
        return choose_backend(candidates, card.preprocessing, device, choice)
    except DeitkitError:
        if wanted != "auto":
            raise
        return choose_backend(candidates, card.preprocessing, device, "auto")


@torch.no_grad()
def _check_outputs(member: TeacherMember, num_classes: int, folder: Path) -> None:
    """Refuses a card, or fitted weights, that do not fit the model."""
    card = member.card
    # A batch of the size that the backend was chosen with: compiled ones compile once per size.
    views = torch.zeros(CHOICE_BATCH, 3, *card.preprocessing.image_size)
    try:
        logits, maps = member.all_outputs(views)
    except RuntimeError:
        raise _mismatch(folder) from None
    known = logits.shape[1] == num_classes if card.columns is None else logits.shape[1] > max(card.columns)
    if not known or tuple(m.shape[1] for m in maps) != card.map_channels:
        raise _mismatch(folder)


def _mismatch(folder: Path) -> WeightsError:
    return WeightsError(
        f"the teacher in {folder} cannot be used: {TEACHER_CARD}, {WEIGHTS} and the pretrained weights do "
        "not belong together; fit it again"
    )


def _with_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
