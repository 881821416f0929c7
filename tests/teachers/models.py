"""Small teachers with random weights in files, one of each kind."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import nn

from deitkit.config import TeacherConfig
from deitkit.teachers.fit import FitData, fit_teacher
from deitkit.teachers.saved import save_teacher


def timm_file(folder: Path, name: str = "test_efficientnet", num_classes: int = 1000, seed: int = 0) -> str:
    """The spec of a timm model with random weights."""
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=num_classes)
    path = folder / f"{name}-{num_classes}-{seed}.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return f"timm:{name}@{path}"


def fitted_folder(folder: Path, name: str = "test_efficientnet", side: int = 32) -> Path:
    """The folder of a fitted teacher of two classes, for images of `side` pixels."""
    images = torch.rand(12, 3, side, side, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 2
    config = TeacherConfig(spec=timm_file(folder, name), image_size=side, backend="pytorch", probe_views=1)
    data = FitData(lambda v: [images], labels, ("cat", "dog"), None, 0)
    teacher = fit_teacher(config, data, student_size=(side, side), device=torch.device("cpu"))
    save_teacher(folder / "teacher", teacher)
    return folder / "teacher"


def onnx_file(
    path: Path, *, shape=("B", 3, 32, 32), classes: int = 4, softmax: bool = False, kind=None
) -> Path:
    """Mean colour times a matrix, as ONNX; B is free."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kind = kind or TensorProto.FLOAT
    axes = [2, 3] if shape[1] == 3 else [1, 2]
    weight = torch.randn(3, classes, generator=torch.Generator().manual_seed(0)).numpy()
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["logits"]),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
    graph = helper.make_graph(
        nodes,
        "mean colour",
        [helper.make_tensor_value_info("images", kind, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], kind, [shape[0], classes])],
        [
            numpy_helper.from_array(torch.tensor(axes).numpy(), "axes"),
            numpy_helper.from_array(weight, "weight"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, path)
    return path


class MeanColour(nn.Module):
    """Views -> the mean of each channel."""

    classes = ("red", "green", "blue")

    def forward(self, views: torch.Tensor) -> torch.Tensor:
        return views.mean((2, 3))


mean_colour = MeanColour()


def unnamed(views: torch.Tensor) -> torch.Tensor:
    return 10 * torch.cat([views.mean((2, 3)), views.std((2, 3))], 1)


def wrong_shape(views: torch.Tensor) -> torch.Tensor:
    return views


def failing(views: torch.Tensor) -> torch.Tensor:
    raise ZeroDivisionError("on purpose")


no_function = 7
