"""The format of a run folder: model.safetensors and config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...io import write_json, write_tensors
from ...run_folder import CONFIG, WEIGHTS, info_from, read_calibration
from ...run_schema import CalibrationInfo
from ..format import CheckpointInfo, ExportedModel, WeightsFormat, register


@register
class DeitkitFormat(WeightsFormat):
    name = "deitkit"
    has_hybrids = True
    about = "a folder for deitkit predict, eval and --init, as a run is"

    def describes(self, config: Mapping[str, Any]) -> bool:
        return "student" in config

    def info(self, config: Mapping[str, Any], folder: Path) -> CheckpointInfo:
        run = info_from(config, folder / CONFIG)
        view = run.preprocessing
        return CheckpointInfo(
            image_size=run.student.image_size,
            patch_size=run.student.patch_size,
            num_heads=run.student.num_heads or None,
            classes=run.classes,
            mean=view.mean,
            std=view.std,
            interpolation=view.interpolation,
            crop=view.crop,
            task=run.task,
            # Of a folder that was pushed, the heads are divided already.
            calibration=read_calibration(folder) if run.head_temperature == 1.0 else CalibrationInfo(),
        )

    def write(self, exported: ExportedModel, folder: Path) -> list[Path]:
        files = [folder / WEIGHTS, folder / CONFIG]
        write_tensors(files[0], exported.state, {"format": "pt"})
        described = {
            "task": exported.task,
            "classes": list(exported.classes),
            "preprocessing": asdict(exported.preprocessing),
            "student": exported.model.describe(),
        }
        write_json(files[1], described)
        return files
