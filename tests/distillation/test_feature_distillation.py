"""The projections of feature distillation, initialised by ridge regression."""

from __future__ import annotations

import numpy as np
import torch

from deitkit.distillation import losses
from deitkit.distillation.feature_distillation import EmbeddingDistillation, MapDistillation
from deitkit.models.deit import DeiTOutput, create_model
from deitkit.teachers.teacher import TeacherOutput


def test_the_fitted_projections_are_those_of_least_squares():
    """Against NumPy, over two batches of unlike size; the small ridge is what is left between them."""
    student = create_model("nano", num_classes=2, image_size=32, patch_size=8)
    distillation = MapDistillation(student, (5, 3))
    g = torch.Generator().manual_seed(0)
    seen = []
    for images in (40, 56):
        tokens = tuple(3 + 2 * torch.randn(images, 16, student.embed_dim, generator=g) for _ in range(2))
        maps = tuple(torch.randn(images, c, 4, 4, generator=g) for c in (5, 3))
        output = DeiTOutput(torch.zeros(images, 2), None, patch_tokens=tokens, grid_size=(4, 4))
        seen.append((output, TeacherOutput(torch.zeros(images, 2), maps)))
    distillation.fit(seen)
    for i, project in enumerate(distillation.projections):
        x = torch.cat([output.patch_tokens[i].flatten(0, 1) for output, _ in seen]).double().numpy()
        y = torch.cat(
            [teacher.feature_maps[i].flatten(2).transpose(1, 2).flatten(0, 1) for _, teacher in seen]
        )
        y = y.double().numpy()
        y = (y - y.mean(1, keepdims=True)) / y.std(1, keepdims=True)
        expected = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]
        found = project(torch.cat([output.patch_tokens[i] for output, _ in seen])).flatten(0, 1)
        wanted = x @ expected[:-1] + expected[-1]
        assert np.abs(found.detach().numpy() - wanted).mean() < 0.01 * np.abs(wanted).mean()


def test_tokens_that_hold_the_map_are_read_without_error_at_once():
    student = create_model("nano", num_classes=2, image_size=32, patch_size=8)
    distillation = MapDistillation(student, (6, 6))
    features = torch.randn(64, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    mixed = torch.nn.Linear(6, student.embed_dim)
    target = losses.feature_target(features, (4, 4))
    with torch.no_grad():
        tokens = mixed(target)
    output = DeiTOutput(torch.zeros(64, 2), None, patch_tokens=(tokens, tokens), grid_size=(4, 4))
    teacher = TeacherOutput(torch.zeros(64, 2), (features, features))
    assert distillation(output, teacher) > 1
    distillation.fit([(output, teacher)])
    assert distillation(output, teacher) < 0.05


def seen_embedding(student: torch.nn.Module, embedding: torch.Tensor) -> tuple[DeiTOutput, TeacherOutput]:
    """A student whose embedding holds the teacher's."""
    torch.manual_seed(0)
    mixed = torch.nn.Linear(embedding.shape[1], student.embedding_size)
    with torch.no_grad():
        own = mixed(embedding)
    count = len(embedding)
    return DeiTOutput(torch.zeros(count, 2), None, embedding=own), TeacherOutput(
        torch.zeros(count, 2), (), embedding
    )


def test_an_embedding_that_holds_the_teachers_is_read_without_error_at_once():
    student = create_model("nano", num_classes=2, image_size=32, patch_size=8)
    distillation = EmbeddingDistillation(student, 6)
    assert distillation.blocks == () and distillation.projections[0].in_features == 2 * student.embed_dim
    output, teacher = seen_embedding(student, torch.randn(64, 6, generator=torch.Generator().manual_seed(0)))
    assert distillation(output, teacher) > 0.3
    distillation.fit([(output, teacher)])
    assert distillation(output, teacher) < 0.01
    distillation(output, teacher).backward()
    assert distillation.projections[0].weight.grad is not None


def test_each_number_of_the_embedding_counts_alike_but_for_constant_ones():
    """Whatever its scale; one without a pattern, which would be all noise, is not enlarged."""
    student = create_model("nano", num_classes=2, image_size=32, patch_size=8)
    distillation = EmbeddingDistillation(student, 3)
    scale, shift = torch.tensor([100.0, 1.0, 1e-6]), torch.tensor([5.0, -2.0, 7.0])
    embedding = torch.randn(512, 3, generator=torch.Generator().manual_seed(0)) * scale + shift
    output, teacher = seen_embedding(student, embedding)
    distillation.fit([(output, teacher)])
    [(_, target)] = distillation.pairs(output, teacher)
    torch.testing.assert_close(target[:, 0].mean(0), torch.zeros(3), atol=1e-3, rtol=0)
    std = embedding.std(0, correction=0)
    expected = std / std.clamp(min=0.1 * float(std.mean()))
    torch.testing.assert_close(target[:, 0].std(0, correction=0), expected, atol=1e-3, rtol=1e-3)
    assert expected[2] < 1e-5
