"""From a name to a teacher of the user's classes: its pretrained head where that knows them, else a new one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..config import TeacherConfig
from ..errors import WeightsError
from ..preprocessing import InputSize, Preprocessing
from .classes import choose_outputs, recognise
from .fast_backbone import backend_builders, choose_backend
from .finetune import FineTuneBatches, Network, finetune
from .pretrained import Pretrained, count_params
from .probe import fit_probe, held_out_fifth
from .saved import read_teacher
from .spec import MemberSpec, open_member, parse
from .teacher import MemberCard, Teacher, TeacherCard, TeacherMember

# Above so many training images a teacher's pretrained head is taken without a probe, which would take long.
_MOST_TO_COMPARE = 20_000

ViewBatches = Callable[[int], Iterable[Tensor]]  # view number -> batches (B, 3, H, W) in the images' order


@dataclass(frozen=True)
class FitData:
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
    config: TeacherConfig, data: FitData, *, student_size: tuple[int, int], device: torch.device
) -> Teacher:
    """The teacher that `config` names, for the data's classes.

    A member whose pretrained head knows the classes answers with it where `teacher.classes` or `fit="head"` asks
    for that. Left to itself (`fit="auto"`), a head that knows them by name is compared with a linear probe
    on a held-out fifth of the training images, and the better one teaches; one that does not know them
    gives way to a probe. `fit="finetune"` trains the network too, from a probe; `"finetune-last"` its last
    half.
    Raises DeitkitError for what cannot be had, and for a head that would be random.
    """
    members: list[TeacherMember] = []
    for spec in parse(config.spec):
        if spec.kind == "fitted":
            taken = read_teacher(spec.rest, config, device=device).for_classes(data.classes)
            if taken.card.several != (data.labels.ndim == 2):
                kinds = ("one class", "several labels")
                raise WeightsError(
                    f"the teacher in {spec.rest} was fitted to {kinds[taken.card.several]} an image, and "
                    f"the data have {kinds[not taken.card.several]}; fit it to these data"
                )
            members += _weighted(taken, spec.weight)
        else:
            members.append(
                _fit_member(spec, config, data, InputSize(config.image_size, student_size), device)
            )
    several = data.labels.ndim == 2
    return Teacher(TeacherCard(data.classes, tuple(m.card for m in members), several), members)


def pretrained_head_teacher(
    config: TeacherConfig,
    classes: tuple[str, ...] | None,
    *,
    student_size: tuple[int, int] | None,
    device: torch.device,
) -> Teacher:
    """The teacher with the heads that its weights came with, nothing fitted.

    classes: what to answer; None: all that the first member knows. student_size: None for whole images
    at the native size. Raises DeitkitError where a member has no such head, does not know the classes, or
    was fitted to several labels an image, of which no caller can take the answers.
    """
    members: list[TeacherMember] = []
    for spec in parse(config.spec):
        if spec.kind == "fitted":
            taken = read_teacher(spec.rest, config, device=device)
            if taken.card.several:
                raise WeightsError(
                    f"the teacher in {spec.rest} was fitted to several labels an image, and one class an "
                    "image is asked for; give one that was fitted to classes"
                )
            classes = classes or taken.card.classes
            members += _weighted(taken.for_classes(classes), spec.weight)
            continue
        model, view = _open(spec, config, InputSize(config.image_size, student_size))
        if classes is None:
            if model.head is None or model.outputs is None:
                raise WeightsError(
                    f"nobody knows what the outputs of the teacher {model.name} are called; give one that "
                    "was trained on ImageNet's classes, or that says its own"
                )
            classes = model.outputs
        columns = _own_columns(model, config, classes, view)
        if columns is None:
            raise WeightsError(
                f"the teacher {model.name} does not know the classes {', '.join(classes[:4])}...; say which "
                "outputs they are (teacher.classes), or fit a head: deitkit teacher fit SPEC DATA --out DIR"
            )
        members.append(_pretrained_head_member(spec, model, view, config, columns, device))
    assert classes is not None
    return Teacher(TeacherCard(classes, tuple(m.card for m in members)), members)


def _weighted(teacher: Teacher, weight: float) -> list[TeacherMember]:
    """The members of a fitted teacher, which together weigh `weight`."""
    total = sum(member.card.weight for member in teacher.members)
    return [m.with_card(weight=weight * m.card.weight / total) for m in teacher.members]


def _open(spec: MemberSpec, config: TeacherConfig, size: InputSize) -> tuple[Pretrained, Preprocessing]:
    """The model, and its preprocessing with what the settings change of it."""
    model = open_member(spec, size)
    view = model.preprocessing
    return model, replace(view, mean=config.mean or view.mean, std=config.std or view.std)


def _fit_member(
    spec: MemberSpec, config: TeacherConfig, data: FitData, size: InputSize, device: torch.device
) -> TeacherMember:
    model, view = _open(spec, config, size)
    own = _pretrained_head(spec, model, view, config, data, device)
    told = config.fit == "head" or config.classes is not None
    if own is not None and (told or len(data.labels) > _MOST_TO_COMPARE):
        return own
    member = own or _member(spec, model, view, config, nn.Identity(), device)
    views = range(max(1, config.probe_views))
    features = torch.stack(
        [torch.cat([member.features(batch)[0].cpu() for batch in data.views(v)]) for v in views]
    )
    probe = fit_probe(features, data.labels, len(data.classes), data.seed)
    if own is not None:
        top1 = _top1_held_out(own, features[0], data)
        if top1 >= probe.score:
            found = f"{top1:.1f} % on a held-out fifth, a linear probe {probe.score:.1f} %"
            return own.with_card(how=f"{own.card.how}: {found}")
    how = f"linear probe over {len(views)} views, {probe.holdout}"
    if own is not None:
        how += f", its pretrained head {top1:.1f} %"
    if config.fit in ("finetune", "finetune-last"):
        return _finetuned(member, model, config, data, probe.head, device)
    params = (
        model.params + count_params(probe.head) - (count_params(model.head) if model.head is not None else 0)
    )
    card = replace(member.card, how=how, head="linear", columns=None, params=params)
    return TeacherMember(card, member.backend, probe.head)


@torch.no_grad()
def _top1_held_out(member: TeacherMember, features: Tensor, data: FitData) -> float:
    """Percent of the held-out fifth that the pretrained head names right; features (N, F) of plain views."""
    held, _ = held_out_fifth(len(data.labels), data.seed)
    answers = member.of_classes(member.head(features[held]))
    return 100 * (answers.argmax(1) == data.labels[held]).double().mean().item()


def _finetuned(
    member: TeacherMember,
    model: Pretrained,
    config: TeacherConfig,
    data: FitData,
    head: nn.Linear,
    device: torch.device,
) -> TeacherMember:
    if model.body is None or data.finetune_batches is None:
        raise WeightsError(f"the teacher {model.name} cannot be trained here; use teacher.fit probe")
    view = member.card.preprocessing
    network, last = Network(model.body, head, view), config.fit == "finetune-last"
    several = data.labels.ndim == 2
    epochs = finetune(network, data.finetune_batches, device, last=last, several=several)
    what = "its last half " if last else ""
    card = replace(
        member.card,
        how=f"{what}fine-tuned for {epochs} epochs from a linear probe",
        head="linear",
        params=count_params(network),
        finetuned=True,
    )
    backend = choose_backend(backend_builders(model, view, device), view, device, member.backend.name)
    return TeacherMember(card, backend, head, model.body)


def _own_columns(
    model: Pretrained, config: TeacherConfig, classes: tuple[str, ...], view: Preprocessing
) -> tuple[int, ...] | None:
    """Which outputs of the pretrained head are `classes`; None where it has no head or does not know them."""
    if model.head is None:
        if config.classes is not None:
            raise WeightsError(
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
        assert model.backends is not None
        pooled = next(iter(model.backends.values()))(view)(images)[0]
    assert model.head is not None
    return model.head(pooled).shape[1]


def _pretrained_head(
    spec: MemberSpec,
    model: Pretrained,
    view: Preprocessing,
    config: TeacherConfig,
    data: FitData,
    device: torch.device,
) -> TeacherMember | None:
    """With the model's pretrained head, where that is asked for or may know the classes; None where it may not.

    Raises DeitkitError where it is asked for and does not, and where the settings contradict each other.
    """
    one_class_an_image = data.labels.ndim == 1
    if config.fit == "head" or (config.fit == "auto" and (config.classes is not None or one_class_an_image)):
        columns = _own_columns(model, config, data.classes, view)
        if columns is not None:
            return _pretrained_head_member(spec, model, view, config, columns, device)
        if config.fit == "head":
            raise WeightsError(
                f"the pretrained head of the teacher {model.name} does not know the classes "
                f"{', '.join(data.classes[:4])}...; say which outputs they are (teacher.classes), or "
                "leave out teacher.fit head"
            )
    elif config.classes is not None:
        raise WeightsError(
            f"teacher.classes chooses outputs of the teacher's pretrained head, and teacher.fit {config.fit} makes "
            "a new one; give one of the two"
        )
    return None


def _pretrained_head_member(
    spec: MemberSpec,
    model: Pretrained,
    view: Preprocessing,
    config: TeacherConfig,
    columns: tuple[int, ...],
    device: torch.device,
) -> TeacherMember:
    assert model.head is not None
    member = _member(spec, model, view, config, model.head, device)
    outputs = member.whole_answer(torch.zeros(2, 3, *view.image_size))[0].shape[1]
    known = f", {len(columns)} of its {outputs} outputs" if outputs > len(columns) else ""
    return member.with_card(columns=columns, how=f"its pretrained head{known}")


def _member(
    spec: MemberSpec,
    model: Pretrained,
    view: Preprocessing,
    config: TeacherConfig,
    head: nn.Module,
    device: torch.device,
) -> TeacherMember:
    """The member with a backend chosen."""
    backend = choose_backend(backend_builders(model, view, device), view, device, config.backend)
    maps = backend(torch.zeros(2, 3, *view.image_size))[1:]
    card = MemberCard(
        spec=spec.settled(),
        name=model.name,
        weight=spec.weight,
        preprocessing=view,
        head="own",
        columns=None,
        how="",
        params=model.params,
        map_channels=tuple(m.shape[1] for m in maps),
        finetuned=False,
        backend=backend.name,
    )
    return TeacherMember(card, backend, head)
