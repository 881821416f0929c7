"""From a name to a teacher of the user's classes: its own head where that knows them, else a new one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..config import TeacherConfig
from ..errors import DeitkitError
from .backends import choose_engine, engines_of
from .classes import choose_outputs, recognise
from .finetune import FineTuneBatches, Network, finetune
from .preprocessing import Preprocessing, SizeWish
from .pretrained import Pretrained
from .probe import fit_probe, held_out_fifth
from .saved import load_teacher
from .spec import Member, open_member, parse
from .teacher import MemberCard, Teacher, TeacherCard, Voice

# Above so many training images a teacher's own head is taken without a probe, which would take long.
_MOST_TO_COMPARE = 20_000

ViewBatches = Callable[[int], Iterable[Tensor]]  # view number -> batches (B, 3, H, W) in the images' order


@dataclass(frozen=True)
class Lesson:
    """What a head is fitted on.

    views(v): batches of the v-th view of all training images, in order; view 0 is plain. labels: (N,)
    classes, or (N, K) of which an image may have several.
    """

    views: ViewBatches
    labels: Tensor
    classes: tuple[str, ...]
    finetune_batches: FineTuneBatches | None
    seed: int


def fit_teacher(
    config: TeacherConfig, lesson: Lesson, *, student_size: tuple[int, int], device: torch.device
) -> Teacher:
    """The teacher that `config` names, for the lesson's classes.

    A member whose own head knows the classes answers with it where `teacher.classes` or `fit="head"` asks
    for that. Left to itself (`fit="auto"`), a head that knows them by name is compared with a linear probe
    on a held-out fifth of the training images, and the better one teaches; one that does not know them
    gives way to a probe. `fit="finetune"` trains the network too, from a probe; `"finetune-last"` its last
    half.
    Raises DeitkitError for what cannot be had, and for a head that would be random.
    """
    voices: list[Voice] = []
    for member in parse(config.spec):
        if member.kind == "fitted":
            taken = load_teacher(member.rest, config, device=device).for_classes(lesson.classes)
            if taken.card.several != (lesson.labels.ndim == 2):
                kinds = ("one class", "several labels")
                raise DeitkitError(
                    f"the teacher in {member.rest} was fitted to {kinds[taken.card.several]} an image, and "
                    f"the data have {kinds[not taken.card.several]}; fit it to these data"
                )
            voices += _weighted(taken, member.weight)
        else:
            voices.append(
                _fit_member(member, config, lesson, SizeWish(config.image_size, student_size), device)
            )
    several = lesson.labels.ndim == 2
    return Teacher(TeacherCard(lesson.classes, tuple(v.card for v in voices), several), voices)


def own_head_teacher(
    config: TeacherConfig,
    classes: tuple[str, ...] | None,
    *,
    student_size: tuple[int, int] | None,
    device: torch.device,
) -> Teacher:
    """The teacher with the heads that its weights came with, nothing fitted.

    classes: what to answer; None: all that the first member knows. student_size: None for whole pictures
    at the native size. Raises DeitkitError where a member has no such head, does not know the classes, or
    was fitted to several labels an image, of which no caller can take the answers.
    """
    voices: list[Voice] = []
    for member in parse(config.spec):
        if member.kind == "fitted":
            taken = load_teacher(member.rest, config, device=device)
            if taken.card.several:
                raise DeitkitError(
                    f"the teacher in {member.rest} was fitted to several labels an image, and one class an "
                    "image is asked for; give one that was fitted to classes"
                )
            classes = classes or taken.card.classes
            voices += _weighted(taken.for_classes(classes), member.weight)
            continue
        model, view = _open(member, config, SizeWish(config.image_size, student_size))
        if classes is None:
            if model.head is None or model.outputs is None:
                raise DeitkitError(
                    f"nobody knows what the outputs of the teacher {model.name} are called; give one that "
                    "was trained on ImageNet's classes, or that says its own"
                )
            classes = model.outputs
        columns = _own_columns(model, config, classes, view)
        if columns is None:
            raise DeitkitError(
                f"the teacher {model.name} does not know the classes {', '.join(classes[:4])}...; say which "
                "outputs they are (teacher.classes), or fit a head: deitkit teacher fit SPEC DATA --out DIR"
            )
        voices.append(_own_voice(member, model, view, config, columns, device))
    assert classes is not None
    return Teacher(TeacherCard(classes, tuple(v.card for v in voices)), voices)


def _weighted(teacher: Teacher, weight: float) -> list[Voice]:
    """The voices of a fitted teacher, which together weigh `weight`."""
    total = sum(voice.card.weight for voice in teacher.voices)
    return [v.with_card(weight=weight * v.card.weight / total) for v in teacher.voices]


def _open(member: Member, config: TeacherConfig, wish: SizeWish) -> tuple[Pretrained, Preprocessing]:
    """The model, and its preprocessing with what the settings change of it."""
    model = open_member(member, wish)
    view = model.preprocessing
    return model, replace(view, mean=config.mean or view.mean, std=config.std or view.std)


def _fit_member(
    member: Member, config: TeacherConfig, lesson: Lesson, wish: SizeWish, device: torch.device
) -> Voice:
    model, view = _open(member, config, wish)
    own, several = None, lesson.labels.ndim == 2
    if config.fit == "head" or (config.fit == "auto" and (config.classes is not None or not several)):
        columns = _own_columns(model, config, lesson.classes, view)
        if columns is not None:
            own = _own_voice(member, model, view, config, columns, device)
            if config.fit == "head" or config.classes is not None or len(lesson.labels) > _MOST_TO_COMPARE:
                return own
        elif config.fit == "head":
            raise DeitkitError(
                f"the own head of the teacher {model.name} does not know the classes "
                f"{', '.join(lesson.classes[:4])}...; say which outputs they are (teacher.classes), or "
                "leave out teacher.fit head"
            )
    elif config.classes is not None:
        raise DeitkitError(
            f"teacher.classes chooses outputs of the teacher's own head, and teacher.fit {config.fit} makes "
            "a new one; give one of the two"
        )
    voice = own or _voice(member, model, view, config, nn.Identity(), device)
    views = range(max(1, config.probe_views))
    features = torch.stack(
        [torch.cat([voice.features(batch)[0].cpu() for batch in lesson.views(v)]) for v in views]
    )
    probe = fit_probe(features, lesson.labels, len(lesson.classes), lesson.seed)
    if own is not None:
        top1 = _top1_held_out(own, features[0], lesson)
        if top1 >= probe.score:
            found = f"{top1:.1f} % on a held-out fifth, a linear probe {probe.score:.1f} %"
            return own.with_card(how=f"{own.card.how}: {found}")
    how = f"linear probe over {len(views)} views, {probe.holdout}"
    if own is not None:
        how += f", its own head {top1:.1f} %"
    if config.fit in ("finetune", "finetune-last"):
        return _finetuned(voice, model, config, lesson, probe.head, device)
    params = model.params + _size(probe.head) - (_size(model.head) if model.head is not None else 0)
    card = replace(voice.card, how=how, head="linear", columns=None, params=params)
    return Voice(card, voice.engine, probe.head)


@torch.no_grad()
def _top1_held_out(voice: Voice, features: Tensor, lesson: Lesson) -> float:
    """Percent of the held-out fifth that the own head names right; features (N, F) of plain views."""
    held, _ = held_out_fifth(len(lesson.labels), lesson.seed)
    answers = voice.of_classes(voice.head(features[held]))
    return 100 * (answers.argmax(1) == lesson.labels[held]).double().mean().item()


def _finetuned(
    voice: Voice,
    model: Pretrained,
    config: TeacherConfig,
    lesson: Lesson,
    head: nn.Linear,
    device: torch.device,
) -> Voice:
    if model.body is None or lesson.finetune_batches is None:
        raise DeitkitError(f"the teacher {model.name} cannot be trained here; use teacher.fit probe")
    view = voice.card.preprocessing
    network, last = Network(model.body, head, view), config.fit == "finetune-last"
    several = lesson.labels.ndim == 2
    epochs = finetune(network, lesson.finetune_batches, device, last=last, several=several)
    what = "its last half " if last else ""
    card = replace(
        voice.card,
        how=f"{what}fine-tuned for {epochs} epochs from a linear probe",
        head="linear",
        params=_size(network),
        finetuned=True,
    )
    engine = choose_engine(engines_of(model, view, device), view, device, voice.engine.name)
    return Voice(card, engine, head, model.body)


def _own_columns(
    model: Pretrained, config: TeacherConfig, classes: tuple[str, ...], view: Preprocessing
) -> tuple[int, ...] | None:
    """Which outputs of the own head are `classes`; None where it has no head or does not know them."""
    if model.head is None:
        if config.classes is not None:
            raise DeitkitError(
                f"the weights of the teacher {model.name} hold no head, so teacher.classes has nothing to "
                "choose from; leave it out, and a new head is fitted"
            )
        return None
    if config.classes is None:
        return recognise(classes, model.outputs)
    outputs = len(model.outputs) if model.outputs is not None else _count_outputs(model, view)
    return choose_outputs(config.classes, classes, model.outputs, outputs, model.name)


@torch.inference_mode()
def _count_outputs(model: Pretrained, view: Preprocessing) -> int:
    images = torch.zeros(2, 3, *view.image_size)
    if model.body is not None:
        pooled = model.body(images)[0]
    else:
        assert model.engines is not None
        pooled = next(iter(model.engines.values()))(view)(images)[0]
    assert model.head is not None
    return model.head(pooled).shape[1]


def _own_voice(
    member: Member,
    model: Pretrained,
    view: Preprocessing,
    config: TeacherConfig,
    columns: tuple[int, ...],
    device: torch.device,
) -> Voice:
    assert model.head is not None
    voice = _voice(member, model, view, config, model.head, device)
    outputs = voice.whole_answer(torch.zeros(2, 3, *view.image_size))[0].shape[1]
    known = f", {len(columns)} of its {outputs} outputs" if outputs > len(columns) else ""
    return voice.with_card(columns=columns, how=f"its own head{known}")


def _voice(
    member: Member,
    model: Pretrained,
    view: Preprocessing,
    config: TeacherConfig,
    head: nn.Module,
    device: torch.device,
) -> Voice:
    """The member with an engine chosen."""
    engine = choose_engine(engines_of(model, view, device), view, device, config.backend)
    maps = engine(torch.zeros(2, 3, *view.image_size))[1:]
    card = MemberCard(
        spec=member.settled().spec,
        name=model.name,
        weight=member.weight,
        preprocessing=view,
        head="own",
        columns=None,
        how="",
        params=model.params,
        map_channels=tuple(m.shape[1] for m in maps),
        finetuned=False,
        backend=engine.name,
    )
    return Voice(card, engine, head)


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
