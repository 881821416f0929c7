"""Checkpoints: written to the side and renamed, two kept, read without pickle."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..distillation.feature_distillation import FeatureDistillation
from ..errors import ResumeError
from ..io import write_tensors
from .best import BestWeights
from .ema import EMA


@dataclass
class TrainingState:
    """Everything that an update changes. Randomness is not here: it is a function of seed and step."""

    model: nn.Module
    guidance: FeatureDistillation | None
    ema: EMA
    optimizer: torch.optim.Optimizer
    best: BestWeights | None = None  # where a run may stop early
    step: int = 0  # updates done
    seconds: float = 0.0  # spent in training and measuring, over all sessions

    def tensors(self) -> dict[str, Tensor]:
        """Flat names to tensors, without copies."""
        flat = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        flat |= {f"ema.{k}": v for k, v in self.ema.weights.items()}
        if self.guidance is not None:
            flat |= {f"guidance.{k}": v for k, v in self.guidance.state_dict().items()}
        if self.best is not None:
            flat |= {f"best.{k}": v for k, v in self.best.tensors().items()}
        for i, values in self.optimizer.state_dict()["state"].items():
            flat |= {f"optimizer.{i}.{k}": v for k, v in values.items()}
        return flat

    def load(self, flat: dict[str, Tensor], step: int, seconds: float) -> None:
        """The inverse of `tensors`."""

        def part(name: str) -> dict[str, Tensor]:
            return {k[len(name) + 1 :]: v for k, v in flat.items() if k.startswith(name + ".")}

        self.model.load_state_dict(part("model"))
        for k, v in part("ema").items():
            self.ema.weights[k].copy_(v)
        if self.guidance is not None:
            self.guidance.load_state_dict(part("guidance"))
        if self.best is not None:
            self.best.load(part("best"))
        saved = self.optimizer.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for k, v in part("optimizer").items():
            index, name = k.split(".", 1)
            moments.setdefault(int(index), {})[name] = v
        self.optimizer.load_state_dict({"state": moments, "param_groups": saved["param_groups"]})
        self.step, self.seconds = step, seconds


def save_checkpoint(folder: Path, state: TrainingState, facts: dict[str, Any]) -> Path:
    """Writes `step-N.safetensors` with `facts` in its header, and drops all but the last two."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{state.step:08d}.safetensors"
    write_tensors(
        path, state.tensors(), {"facts": json.dumps(facts | {"step": state.step, "seconds": state.seconds})}
    )
    for old in sorted(folder.glob("step-*.safetensors"))[:-2]:
        old.unlink()
    return path


def load_checkpoint(folder: Path, state: TrainingState, expected: dict[str, Any]) -> Path | None:
    """Restores the newest checkpoint that can be read; None where there is none at all.

    A file cut in half is passed over for the one before it. Raises DeitkitError where none can be
    read, or where `expected` facts differ from the saved ones.
    """
    found = sorted(folder.glob("step-*.safetensors"), reverse=True)
    for path in found:
        try:
            with safe_open(path, "pt") as opened:
                facts = json.loads(opened.metadata()["facts"])
                flat = {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118 - not a dict
        except Exception:  # a cut file fails in many ways
            continue
        different = [k for k, v in expected.items() if facts.get(k) != v]
        if different:
            k = different[0]
            raise ResumeError(
                f"cannot resume from {path}: {k} was {facts.get(k)!r} and is now {expected[k]!r}; "
                "resume with the settings of the run, or choose another --out"
            )
        state.load(flat, facts["step"], facts.get("seconds", 0.0))
        return path
    if found:
        raise ResumeError(f"no checkpoint in {folder} can be read; start the run again without --resume")
    return None
