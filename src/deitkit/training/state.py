"""Everything that a training step changes, and its checkpoints on disk, read without pickle."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .. import log
from ..config import Config
from ..errors import ResumeError
from ..io import digest, write_tensors
from ..run_folder import METRICS

_KEPT = 2  # checkpoints; if the newest was cut by a crash, the one before it is used
_NO_DIGEST = ""  # in checkpoints of version 0.1
_FEATURES = "guidance"  # prefix of the feature projections' tensors since version 0.1


class EMA:
    """Exponential moving average of weights with decay min(decay, (1 + n) / (10 + n)) at step n."""

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights: dict[str, Tensor] = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Averages in the weights of `model` after `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = model.state_dict()
        torch._foreach_lerp_(list(self.weights.values()), [current[k] for k in self.weights], 1 - decay)


class BestWeights:
    """The averaged weights with the lowest validation loss, for runs with early stopping.

    They are selected on the validation images, so their accuracy there is a little optimistic.

    waited: evaluations since the lowest loss.
    """

    def __init__(self, weights: dict[str, Tensor]):
        self.weights = {k: v.clone() for k, v in weights.items()}
        self.loss, self.waited = math.inf, 0

    def update(self, loss: float, weights: dict[str, Tensor]) -> None:
        """Takes an evaluation of `weights` into account."""
        if loss < self.loss:
            self.loss, self.waited = loss, 0
            for k, v in weights.items():
                self.weights[k].copy_(v)
        else:
            self.waited += 1

    def tensors(self) -> dict[str, Tensor]:
        """The state under flat names."""
        facts = {"loss": torch.tensor(self.loss, dtype=torch.float64), "waited": torch.tensor(self.waited)}
        return {f"weights.{k}": v for k, v in self.weights.items()} | facts

    def load(self, flat: dict[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        self.loss, self.waited = flat["loss"].item(), int(flat["waited"].item())
        for k, v in self.weights.items():
            v.copy_(flat[f"weights.{k}"])


@dataclass
class TrainingState:
    """Model, optimizer and averages at a step. Randomness is no state: it is a function of seed and step."""

    model: nn.Module
    features: nn.Module | None  # projections of feature distillation
    ema: EMA
    optimizer: torch.optim.Optimizer
    best: BestWeights | None = None  # with early stopping
    step: int = 0  # steps done
    seconds: float = 0.0  # spent in training and evaluation, over all sessions
    metrics: list[dict[str, Any]] = field(default_factory=list)  # the lines of metrics.jsonl

    @property
    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights; with early stopping the best ones so far."""
        return self.ema.weights if self.best is None else self.best.weights

    def tensors(self) -> dict[str, Tensor]:
        """Flat names to tensors, without copies."""
        flat = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        flat |= {f"ema.{k}": v for k, v in self.ema.weights.items()}
        if self.features is not None:
            flat |= {f"{_FEATURES}.{k}": v for k, v in self.features.state_dict().items()}
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
        if self.features is not None:
            self.features.load_state_dict(part(_FEATURES))
        if self.best is not None:
            self.best.load(part("best"))
        saved = self.optimizer.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for k, v in part("optimizer").items():
            index, name = k.split(".", 1)
            moments.setdefault(int(index), {})[name] = v
        self.optimizer.load_state_dict({"state": moments, "param_groups": saved["param_groups"]})
        self.step, self.seconds = step, seconds


def save_checkpoint(folder: Path, state: TrainingState, identity: dict[str, Any]) -> Path:
    """Writes `step-N.safetensors` with `identity` in its header, and drops all but the last two."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{state.step:08d}.safetensors"
    facts = json.dumps(identity | {"step": state.step, "seconds": state.seconds, "metrics": state.metrics})
    flat = {k: v.detach().contiguous().cpu() for k, v in state.tensors().items()}
    write_tensors(path, flat, {"facts": facts, "sha256": digest(flat, facts)})
    for old in sorted(folder.glob("step-*.safetensors"))[:-_KEPT]:
        old.unlink()
    return path


def load_checkpoint(folder: Path, state: TrainingState, identity: dict[str, Any]) -> Path | None:
    """Restores the newest undamaged checkpoint; returns None if there is none.

    Raises ResumeError if none can be read, or if `identity` (data, settings, epochs, ...) differs from the
    saved one.
    """
    found = sorted(folder.glob("step-*.safetensors"), reverse=True)
    for path in found:
        try:
            facts, flat = _read(path)
        except Exception as error:  # a damaged file fails in many ways
            _warn_of_damage(path, error)
            continue
        if "settings" in facts:  # those of version 0.1 have other names
            facts["settings"] = Config.from_dict(facts["settings"]).affects_results()
        different = [k for k, v in identity.items() if facts.get(k) != v]
        if different:
            k = different[0]
            raise ResumeError(
                f"cannot resume from {path}: {k} was {facts.get(k)!r} and is now {identity[k]!r}; "
                "resume with the settings of the run, or choose another --out"
            )
        try:
            state.load(flat, facts["step"], facts.get("seconds", 0.0))
        except (KeyError, RuntimeError) as error:
            _warn_of_damage(path, error)
            continue
        known = facts.get("metrics")
        state.metrics = known if known is not None else _metrics_until(state.step, folder.parent)
        return path
    if found:
        raise ResumeError(f"no checkpoint in {folder} can be read; start the run again without --resume")
    return None


def _warn_of_damage(path: Path, error: Exception) -> None:
    log.warning(f"{path} cannot be read ({type(error).__name__}); an older checkpoint is used")


def _metrics_until(step: int, run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl up to a step, for a checkpoint that does not hold them: of version 0.1."""
    file = run / METRICS
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [line for line in lines if line["step"] <= step]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The facts and tensors of a checkpoint. Raises an exception of any kind if it is damaged."""
    if not path.is_file():
        raise FileNotFoundError
    with safe_open(path, "pt") as opened:
        saved = opened.metadata()
        flat = {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118 - not a dict
    if saved.get("sha256", _NO_DIGEST) not in (_NO_DIGEST, digest(flat, saved["facts"])):
        raise ValueError("its checksum differs")
    facts: dict[str, Any] = json.loads(saved["facts"])
    if "metrics" in facts and "sha256" not in saved:
        raise ValueError("its checksum is missing")
    if not isinstance(facts["step"], int):
        raise ValueError("its step is not a number")
    return facts, flat
