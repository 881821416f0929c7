"""A fitted teacher as one graph, so that it can be exported and benchmarked like a student."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import WeightsError
from ..inference.joint_classifier import ClassifierGraph
from ..inference.unfamiliarity import unfamiliarity
from ..models import probabilities_of, tempered
from ..preprocessing import Normalised, Preprocessing
from ..tasks import Task
from .teacher import Teacher, TeacherMember, joined_embedding, mean_of_probabilities


class TeacherGraph(ClassifierGraph):
    """Views (B, 3, *view_size), float in [0, 1] -> probabilities and logits, each (B, K).

    Last comes `unfamiliarity`, (B,), if there are class_means (C, F) of the members' joined features.

    Resizing to each member's size and its normalisation are inside. temperature: of the probabilities; the
    logits stay as they are. Raises WeightsError for a member that is not a PyTorch network, such as an ONNX
    file or a Python function.
    """

    class_means: Tensor | None

    def __init__(
        self,
        teacher: Teacher,
        view_size: tuple[int, int],
        temperature: float = 1.0,
        class_means: Tensor | None = None,
    ):
        super().__init__()
        self.output_names = ("probabilities", "class_logits")
        self.output_names += () if class_means is None else ("unfamiliarity",)
        self.register_buffer("class_means", class_means, persistent=False)
        self.temperature = temperature
        self.members = nn.ModuleList(_MemberGraph(member, view_size) for member in teacher.members)
        self.weights = [member.card.weight for member in teacher.members]
        self.task: Task = "multilabel" if teacher.card.multilabel else "multiclass"

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        logits, pooled = zip(*(member(views) for member in self.members), strict=True)
        joined = mean_of_probabilities(logits, self.weights, multilabel=self.task == "multilabel")
        probabilities = tempered(probabilities_of(joined, self.task), self.temperature, self.task)
        if self.class_means is None:
            return probabilities, joined
        return probabilities, joined, unfamiliarity(joined_embedding(pooled), self.class_means)


class _MemberGraph(nn.Module):
    """One member: views -> logits of the classes, and pooled features."""

    columns: Tensor | None

    def __init__(self, member: TeacherMember, view_size: tuple[int, int]):
        super().__init__()
        if member.backbone is None:
            raise WeightsError(
                f"the teacher {member.card.name} is not a PyTorch network, so it cannot be converted; "
                "export the student instead, or use the teacher where it comes from"
            )
        view = member.card.preprocessing
        self.resize = Resize(view, view_size)
        self.backbone = Normalised(member.backbone, view.mean, view.std)
        self.head = member.head
        columns = member.card.columns
        self.register_buffer("columns", None if columns is None else torch.tensor(columns), persistent=False)

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        pooled: Tensor = self.backbone(self.resize(views))[0]
        logits: Tensor = self.head(pooled)
        return logits if self.columns is None else logits.index_select(1, self.columns), pooled


class Resize(nn.Module):
    """`Preprocessing.resize` of views of one size, as two matrix products, which every runtime has.

    Interpolation is linear in the pixels and separable, so its matrices are what it makes of unit vectors.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, view: Preprocessing, view_size: tuple[int, int]):
        super().__init__()
        self.same = tuple(view_size) == tuple(view.image_size)
        smaller = view_size[0] > view.image_size[0] or view_size[1] > view.image_size[1]
        for name, of, to in zip(("rows", "columns"), view_size, view.image_size, strict=True):
            matrix = _interpolation(of, to, view.torch_mode, antialias=smaller)
            self.register_buffer(name, matrix, persistent=False)

    def forward(self, views: Tensor) -> Tensor:
        if self.same:
            return views
        # Ends in a transpose: OpenVINO fails when it fuses a product with the normalisation that follows.
        resized = ((views @ self.columns.T).transpose(2, 3) @ self.rows.T).transpose(2, 3)
        return resized.clamp(0, 1)


def _interpolation(of: int, to: int, mode: str, *, antialias: bool) -> Tensor:
    """The matrix (to, of) that interpolates `of` pixels to `to`."""
    unit = torch.eye(of)[:, None, :, None].expand(of, 1, of, 2).contiguous()  # an image per pixel
    found = F.interpolate(unit, (to, 2), mode=mode, align_corners=False, antialias=antialias)
    return found[:, 0, :, 0].T.contiguous()
