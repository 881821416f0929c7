"""The best averaged weights of a run that may stop early."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class BestWeights:
    """The weights of the lowest validation loss so far, and how many measurements went by since.

    Choosing them is a choice made on the validation images: their accuracy there is a little optimistic.
    """

    def __init__(self, weights: dict[str, Tensor]):
        self.weights = {k: v.clone() for k, v in weights.items()}
        self.loss, self.waited = math.inf, 0

    def note(self, loss: float, weights: dict[str, Tensor]) -> None:
        """Takes a measurement of `weights` into account."""
        if loss < self.loss:
            self.loss, self.waited = loss, 0
            for k, v in weights.items():
                self.weights[k].copy_(v)
        else:
            self.waited += 1

    def tensors(self) -> dict[str, Tensor]:
        """All of it under flat names."""
        facts = {"loss": torch.tensor(self.loss, dtype=torch.float64), "waited": torch.tensor(self.waited)}
        return {f"weights.{k}": v for k, v in self.weights.items()} | facts

    def load(self, flat: dict[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        self.loss, self.waited = flat["loss"].item(), int(flat["waited"].item())
        for k, v in self.weights.items():
            v.copy_(flat[f"weights.{k}"])
