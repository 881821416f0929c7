"""The format of the official DeiT code: checkpoint.pth, a dict with the state dict under "model"."""

from __future__ import annotations

from pathlib import Path

import torch

from ..format import ExportedModel, WeightsFormat, register


@register
class OfficialFormat(WeightsFormat):
    """Loaded by the training code's `--finetune FILE`. Holds neither preprocessing nor class names."""

    name = "official"
    about = "a file for --finetune FILE of the official training code"

    def write(self, exported: ExportedModel, folder: Path) -> list[Path]:
        path = folder / "checkpoint.pth"
        torch.save({"model": exported.state}, path)
        return [path]
