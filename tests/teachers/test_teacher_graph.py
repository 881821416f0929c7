"""A teacher as one graph computes what the teacher does, one member or several."""

from __future__ import annotations

import pytest
import torch

from deitkit.config import TeacherConfig
from deitkit.errors import WeightsError
from deitkit.inference.unfamiliarity import unfamiliarity, unit
from deitkit.preprocessing import Preprocessing
from deitkit.teachers.fit import FitData, fit_teacher
from deitkit.teachers.saved import read_teacher, save_teacher
from deitkit.teachers.teacher_graph import Resize, TeacherGraph

from .models import onnx_file, timm_file

CPU = torch.device("cpu")


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("view_size", [(16, 24), (32, 32), (70, 41), (32, 80)])
def test_resizing_by_matrices_is_interpolation(interpolation, view_size):
    view = Preprocessing((32, 32), interpolation=interpolation)
    views = torch.rand(3, 3, *view_size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Resize(view, view_size)(views), view.resize(views), atol=2e-6, rtol=0)


def fitted(folder, spec):
    """A teacher of three classes, fitted, saved and read back with its networks."""
    images = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 3
    data = FitData(lambda v: [images], labels, ("a", "b", "c"), None, 0)
    config = TeacherConfig(spec=spec, image_size=32, backend="pytorch", probe_views=1)
    save_teacher(folder / "teacher", fit_teacher(config, data, student_size=(32, 32), device=CPU))
    return read_teacher(folder / "teacher", device=CPU, keep_backbones=True)


@pytest.mark.parametrize("members", [1, 2])
def test_the_graph_computes_what_the_teacher_does(tmp_path, members):
    spec = ",".join([timm_file(tmp_path), f"{timm_file(tmp_path)}*2"][:members])
    teacher = fitted(tmp_path, spec)
    views = torch.rand(4, 3, 20, 28)
    with torch.inference_mode():
        probabilities, logits = TeacherGraph(teacher, (20, 28))(views)
    output = teacher(views)
    torch.testing.assert_close(logits, output.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(probabilities, logits.softmax(1))
    # Calibrated, with class means of the members' joined features.
    means = unit(torch.rand(3, output.embedding.shape[1]))
    graph = TeacherGraph(teacher, (20, 28), temperature=2.0, class_means=means)
    with torch.inference_mode():
        halved, same, scores = graph(views)
    torch.testing.assert_close(same, logits)
    torch.testing.assert_close(halved, (logits / 2).softmax(1))
    torch.testing.assert_close(scores, unfamiliarity(output.embedding, means), atol=1e-4, rtol=1e-4)
    assert graph.output_names == ("probabilities", "class_logits", "unfamiliarity")


def test_a_member_that_is_no_network_is_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    teacher = fitted(tmp_path, f"onnx:{onnx_file(tmp_path / 'a.onnx', softmax=True)}")
    with pytest.raises(WeightsError, match="not a PyTorch network, so it cannot be converted"):
        TeacherGraph(teacher, (32, 32))
