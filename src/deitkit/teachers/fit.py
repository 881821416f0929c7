"""From a spec to a teacher of the data's classes, with its pretrained head or with a new one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .. import log
from ..config import TeacherConfig
from ..errors import WeightsError
from ..preprocessing import InputSize, Preprocessing
from ..settings import AUTO
from .classes import choose_outputs, match_classes
from .finetune import FineTuneBatches, Network, finetune
from .pretrained import Pretrained, backend_builders, choose_backend, count_params
from .probe import Probe, fit_probe, held_out_fifth
from .saved import read_teacher
from .spec import FITTED, MemberSpec, allowed_code, open_member, parse
from .teacher import MemberCard, Teacher, TeacherCard, TeacherMember

# With more training images than this, a pretrained head that knows the classes is used without fitting a
# probe to compare it with, which would take long.
_MOST_TO_COMPARE = 20_000

ViewBatches = Callable[[int], Iterable[Tensor]]  # view number -> batches (B, 3, H, W), in the images' order


@dataclass(frozen=True)
class FitData:
    """What a head is fitted to.

    views(v): batches of the v-th view of all N training images, in order; view 0 is not augmented.
    labels: (N,) classes, or (N, K) yes/no rows of a multi-label task. finetune_batches: None if the images
    cannot be fine-tuned on. seconds: that the views of a probe may take, of which one is always used; None
    for any.
    """

    views: ViewBatches
    labels: Tensor
    classes: tuple[str, ...]
    finetune_batches: FineTuneBatches | None
    seed: int
    seconds: float | None = None

    @property
    def multilabel(self) -> bool:
        return self.labels.ndim == 2


def fit_teacher(
    config: TeacherConfig, data: FitData, *, student_size: tuple[int, int], device: torch.device
) -> Teacher:
    """The teacher that `config.spec` names, with heads for the data's classes.

    Per member, `config.fit` chooses the head:

    - "auto": the pretrained head if `config.classes` maps it to the classes. If it knows the classes by
      name, it is compared with a linear probe on a held-out fifth of the training images, and the better
      one is used. Otherwise a linear probe.
    - "head": the pretrained head. Raises WeightsError if it does not know the classes.
    - "probe": a linear probe.
    - "finetune": a linear probe, and then the whole network is trained; "finetune-last": its last half.

    A fitted teacher (a folder) keeps its heads. Raises WeightsError if a model is missing or has no use here.
    """
    members: list[TeacherMember] = []
    for spec in parse(config.spec):
        if spec.source == FITTED:
            members += _fitted_members(spec, config, data, device)
        else:
            opened = _Member.open(spec, config, student_size, device)
            members.append(_fit_member(opened, config, data))
    return Teacher(TeacherCard(data.classes, tuple(m.card for m in members), data.multilabel), members)


def pretrained_head_teacher(
    config: TeacherConfig,
    classes: tuple[str, ...] | None,
    *,
    student_size: tuple[int, int] | None,
    device: torch.device,
) -> Teacher:
    """The teacher with its pretrained heads. Nothing is fitted.

    classes: None for all that the first member knows. student_size: None for whole images at the native
    size. Raises WeightsError if a member has no head, does not know the classes, or is a multi-label teacher.
    """
    members: list[TeacherMember] = []
    for spec in parse(config.spec):
        if spec.source == FITTED:
            fitted = _read_fitted(spec, config, device)
            if fitted.card.multilabel:
                raise WeightsError(
                    f"the teacher in {spec.model} is fitted to several labels per image, and one class per "
                    "image is needed; give one that is fitted to classes"
                )
            classes = classes or fitted.card.classes
            members += _weighted(fitted.for_classes(classes), spec.weight)
        else:
            opened = _Member.open(spec, config, student_size, device)
            classes = classes or opened.outputs()
            columns = opened.pretrained_columns(config.classes, classes)
            if columns is None:
                raise WeightsError(
                    f"the teacher {opened.model.name} does not know the classes {', '.join(classes[:4])}...; "
                    "name its outputs (teacher.classes), or fit a head: "
                    "deitkit teacher fit SPEC DATA --out DIR"
                )
            members.append(opened.with_pretrained_head(columns))
    assert classes is not None
    return Teacher(TeacherCard(classes, tuple(m.card for m in members)), members)


def open_backbone(
    config: TeacherConfig, *, student_size: tuple[int, int] | None, device: torch.device
) -> TeacherMember:
    """The first member of `config.spec` for its features; its head is not fitted.

    student_size: None for whole images at the native size. Raises WeightsError if the model is missing.
    """
    spec = parse(config.spec)[0]
    if spec.source == FITTED:
        return _read_fitted(spec, config, device).members[0]
    return _Member.open(spec, config, student_size, device).with_head(nn.Identity())


def _fitted_members(
    spec: MemberSpec, config: TeacherConfig, data: FitData, device: torch.device
) -> list[TeacherMember]:
    """The members of a fitted teacher, for the data's classes."""
    teacher = _read_fitted(spec, config, device).for_classes(data.classes)
    if teacher.card.multilabel != data.multilabel:
        tasks = ("one class", "several labels")
        raise WeightsError(
            f"the teacher in {spec.model} is fitted to {tasks[teacher.card.multilabel]} per image, and the "
            f"data have {tasks[data.multilabel]}; fit it to these data"
        )
    return _weighted(teacher, spec.weight)


def _read_fitted(spec: MemberSpec, config: TeacherConfig, device: torch.device) -> Teacher:
    return read_teacher(
        spec.model,
        device=device,
        backend=config.backend,
        code=allowed_code(config),
        trust_remote_code=config.trust_remote_code,
    )


def _weighted(teacher: Teacher, weight: float) -> list[TeacherMember]:
    """The members of a fitted teacher, with weights that sum to `weight`."""
    total = sum(member.card.weight for member in teacher.members)
    return [m.with_card(weight=weight * m.card.weight / total) for m in teacher.members]


@dataclass(frozen=True)
class _Member:
    """A member of the spec: its pretrained model, not yet on a backend.

    view: its preprocessing, changed by the settings. wanted: the backend that the settings name.
    """

    spec: MemberSpec
    model: Pretrained
    view: Preprocessing
    wanted: str
    device: torch.device

    @classmethod
    def open(
        cls,
        spec: MemberSpec,
        config: TeacherConfig,
        student_size: tuple[int, int] | None,
        device: torch.device,
    ) -> _Member:
        size = InputSize(None if config.image_size == AUTO else config.image_size, student_size)
        model = open_member(spec, size, trust_remote_code=config.trust_remote_code)
        view = model.preprocessing
        view = replace(view, mean=config.mean or view.mean, std=config.std or view.std)
        return cls(spec, model, view, config.backend, device)

    def outputs(self) -> tuple[str, ...]:
        """The names of the pretrained head's outputs. Raises WeightsError if they are unknown."""
        if self.model.head is None or self.model.outputs is None:
            raise WeightsError(
                f"the outputs of the teacher {self.model.name} have no names; give a teacher that was "
                "trained on ImageNet's classes, or one that names its own"
            )
        return self.model.outputs

    def pretrained_columns(self, wanted: str | None, classes: tuple[str, ...]) -> tuple[int, ...] | None:
        """The outputs of the pretrained head that are `classes`; None if it has no head or no such outputs.

        wanted: `teacher.classes`, which maps classes to outputs; None matches them by name.
        """
        model = self.model
        if model.head is None:
            if wanted is not None:
                raise WeightsError(
                    f"the weights of the teacher {model.name} have no head, so teacher.classes has nothing "
                    "to choose from; leave it out, and a new head is fitted"
                )
            return None
        if wanted is None:
            return match_classes(classes, model.outputs)
        num_outputs = len(model.outputs) if model.outputs is not None else self._count_outputs()
        return choose_outputs(wanted, classes, model.outputs, num_outputs, model.name)

    @torch.inference_mode()
    def _count_outputs(self) -> int:
        images = torch.zeros(2, 3, *self.view.image_size)
        if self.model.backbone is not None:
            pooled = self.model.backbone(images)[0]
        else:
            assert self.model.backends is not None
            pooled = next(iter(self.model.backends.values()))(self.view)(images)[0]
        assert self.model.head is not None
        return int(self.model.head(pooled).shape[1])

    def with_head(self, head: nn.Module) -> TeacherMember:
        """The member on the backend that is chosen for it."""
        candidates = backend_builders(self.model, self.view, self.device)
        backend = choose_backend(candidates, self.view, self.device, self.wanted)
        maps = backend(torch.zeros(2, 3, *self.view.image_size))[1:]
        card = MemberCard(
            spec=self.spec.portable(),
            name=self.model.name,
            weight=self.spec.weight,
            preprocessing=self.view,
            head="pretrained",
            columns=None,
            how="",
            params=self.model.params,
            map_channels=tuple(m.shape[1] for m in maps),
            finetuned=False,
            backend=backend.name,
        )
        return TeacherMember(card, backend, head)

    def with_pretrained_head(self, columns: tuple[int, ...]) -> TeacherMember:
        assert self.model.head is not None
        member = self.with_head(self.model.head)
        outputs = member.all_outputs(torch.zeros(2, 3, *self.view.image_size))[0].shape[1]
        known = f", {len(columns)} of its {outputs} outputs" if outputs > len(columns) else ""
        return member.with_card(columns=columns, how=f"its pretrained head{known}")


def _fit_member(opened: _Member, config: TeacherConfig, data: FitData) -> TeacherMember:
    """The head is the pretrained one, a linear probe, or a linear probe that is fine-tuned."""
    columns = _usable_columns(opened, config, data)
    pretrained = opened.with_pretrained_head(columns) if columns is not None else None
    asked = config.fit == "head" or config.classes is not None
    if pretrained is not None and (asked or len(data.labels) > _MOST_TO_COMPARE):
        return pretrained

    member = pretrained or opened.with_head(nn.Identity())
    views = max(1, config.probe_views)
    features = _features(member, data, views)
    probe = fit_probe(features, data.labels, len(data.classes), data.seed)
    how = f"linear probe over {len(features)} view{'s' if len(features) > 1 else ''}, {probe.holdout}"
    if pretrained is not None:
        top1 = _top1_held_out(pretrained, features[0], data)
        if top1 >= probe.score:
            found = f"{top1:.1f} % on a held-out fifth, a linear probe {probe.score:.1f} %"
            return pretrained.with_card(how=f"{pretrained.card.how}: {found}")
        how += f", its pretrained head {top1:.1f} %"

    if config.fit in ("finetune", "finetune-last"):
        return _finetuned(opened, member, probe, data, last=config.fit == "finetune-last")
    params = opened.model.params - count_params(opened.model.head) + count_params(probe.head)
    card = replace(member.card, how=how, head="linear", columns=None, params=params)
    return TeacherMember(card, member.backend, probe.head)


def _usable_columns(opened: _Member, config: TeacherConfig, data: FitData) -> tuple[int, ...] | None:
    """The outputs of the pretrained head that are the classes; None if a new head has to be fitted.

    Raises WeightsError if `config` asks for the pretrained head and it does not know the classes.
    """
    wanted = config.fit == "head" or (
        config.fit == "auto" and (config.classes is not None or not data.multilabel)
    )
    if not wanted:
        if config.classes is not None:
            raise WeightsError(
                "teacher.classes chooses outputs of the teacher's pretrained head, and teacher.fit "
                f"{config.fit} makes a new head; give one of the two"
            )
        return None
    columns = opened.pretrained_columns(config.classes, data.classes)
    if columns is None and config.fit == "head":
        raise WeightsError(
            f"the pretrained head of the teacher {opened.model.name} does not know the classes "
            f"{', '.join(data.classes[:4])}...; name its outputs (teacher.classes), or leave out "
            "teacher.fit head"
        )
    return columns


def _features(member: TeacherMember, data: FitData, views: int) -> Tensor:
    """(V, N, F): pooled features of V views of the N training images; fewer views if time is short."""
    started, features = time.monotonic(), []
    for v in range(views):
        features.append(torch.cat([member.features(batch)[0].cpu() for batch in data.views(v)]))
        with_next = (time.monotonic() - started) * (v + 2) / (v + 1)
        if v + 1 < views and data.seconds is not None and with_next > data.seconds:
            log.warning(f"the budget is short: the teacher's head is fitted on {v + 1} of {views} views")
            break
    return torch.stack(features)


@torch.no_grad()
def _top1_held_out(member: TeacherMember, features: Tensor, data: FitData) -> float:
    """Top-1 in percent of the pretrained head on the held-out fifth; features (N, F) of plain views."""
    held, _ = held_out_fifth(len(data.labels), data.seed)
    logits = member.class_logits(member.head(features[held]))
    return 100 * (logits.argmax(1) == data.labels[held]).double().mean().item()


def _finetuned(
    opened: _Member, member: TeacherMember, probe: Probe, data: FitData, *, last: bool
) -> TeacherMember:
    """Trains the backbone, or its last half, with the probe's head."""
    model, view, device = opened.model, opened.view, opened.device
    if model.backbone is None or data.finetune_batches is None:
        raise WeightsError(f"the teacher {model.name} cannot be fine-tuned; use teacher.fit probe")
    network = Network(model.backbone, probe.head, view)
    epochs = finetune(network, data.finetune_batches, device, last=last, multilabel=data.multilabel)
    card = replace(
        member.card,
        how=f"{'its last half ' if last else ''}fine-tuned for {epochs} epochs from a linear probe",
        head="linear",
        params=count_params(network),
        finetuned=True,
    )
    backend = choose_backend(backend_builders(model, view, device), view, device, member.backend.name)
    return TeacherMember(card, backend, probe.head, model.backbone)
