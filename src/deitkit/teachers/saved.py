"""A fitted teacher in a folder: `teacher.json` says how it was made, beside it lies what was fitted.

The backbone's own weights stay where they came from, unless they were fine-tuned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..config import TeacherConfig
from ..errors import DeitkitError, WeightsError
from ..io import read_json, write_json, write_tensors
from ..preprocessing import InputSize, Preprocessing
from ..run_folder import TEACHER_CARD, holds_teacher
from .fast_backbone import backend_builders, choose_backend
from .spec import open_member, parse_member
from .teacher import MemberCard, Teacher, TeacherCard, TeacherMember

_WEIGHTS = "teacher.safetensors"


def save_teacher(folder: Path, teacher: Teacher) -> None:
    """Writes the heads that were fitted, the networks that were fine-tuned, and then the card."""
    folder.mkdir(parents=True, exist_ok=True)
    state: dict[str, Tensor] = {}
    for i, member in enumerate(teacher.members):
        if member.card.head == "linear":
            state |= {f"{i}.head.{k}": v for k, v in member.head.state_dict().items()}
        if member.card.finetuned:
            assert member.body is not None
            state |= {f"{i}.body.{k}": v for k, v in member.body.state_dict().items()}
    write_tensors(folder / _WEIGHTS, state)
    # Last, and whole: it says that the teacher is there.
    write_json(folder / TEACHER_CARD, dataclasses.asdict(teacher.card))


def kept_teacher(
    folder: Path, config: TeacherConfig, device: torch.device, make: Callable[[], Teacher]
) -> Teacher:
    """The teacher in `folder`, backend included, or a new one that is kept there from now on."""
    if holds_teacher(folder):
        return read_teacher(folder, config, device=device)
    teacher = make()
    save_teacher(folder, teacher)
    return teacher


def read_teacher(folder: str | Path, config: TeacherConfig, *, device: torch.device) -> Teacher:
    """The teacher that `save_teacher` wrote, with the networks' weights from where they came from.

    Of `config` the backend counts only. Raises DeitkitError where something is missing or damaged.
    """
    folder = Path(folder)
    try:
        card = _read_card(read_json(folder / TEACHER_CARD))
        state = load_file(folder / _WEIGHTS)
    except Exception as error:  # a cut file fails in many ways
        raise WeightsError(
            f"the teacher in {folder} cannot be read ({type(error).__name__}); fit it again"
        ) from None
    members = [_load(i, member, state, config, device) for i, member in enumerate(card.members)]
    return Teacher(TeacherCard(card.classes, tuple(m.card for m in members), card.several), members)


def _read_card(saved: dict[str, Any]) -> TeacherCard:
    members = []
    for member in saved["members"]:
        facts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in member.items()}
        facts["preprocessing"] = Preprocessing.from_dict(facts["preprocessing"])
        members.append(MemberCard(**facts))
    return TeacherCard(tuple(saved["classes"]), tuple(members), saved["several"])


def _load(
    i: int, card: MemberCard, state: dict[str, Tensor], config: TeacherConfig, device: torch.device
) -> TeacherMember:
    """One member; its backend is the saved one where that can be had here, so that answers stay the same."""
    member = parse_member(card.spec)
    view = card.preprocessing
    # Fixed sizes come as they are; any other is the one that the head was fitted at.
    model = open_member(member, InputSize(view.image_size[0], view.image_size))
    head = model.head
    if card.head == "linear":
        fitted = _part(state, f"{i}.head.")
        classes, width = fitted["weight"].shape
        head = nn.Linear(width, classes)
        head.load_state_dict(fitted)
    if card.finetuned:
        assert model.body is not None
        model.body.load_state_dict(_part(state, f"{i}.body."))
    assert head is not None
    candidates = backend_builders(model, view, device)
    wanted: str = config.backend
    if wanted == "auto" and device.type == "cpu" and card.backend in candidates:
        wanted = card.backend
    try:
        backend = choose_backend(candidates, view, device, wanted)
    except DeitkitError:
        if config.backend != "auto":
            raise
        backend = choose_backend(candidates, view, device, "auto")
    return TeacherMember(card, backend, head, model.body if card.finetuned else None)


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
