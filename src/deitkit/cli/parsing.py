"""What flags and `--set` items say, as settings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ..errors import SettingError

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}


def settings_of(named: dict[str, Any], items: Sequence[str] | None) -> dict[str, Any]:
    """`{"section.key": value}`: the flags that were given, and then each "section.key=value"."""
    settings = {key: value for key, value in named.items() if value is not None}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise SettingError(f"--set {item!r} has no value; give it as section.key=value")
        settings[key.strip()] = value.strip()
    return settings


def parse_length(epochs: int | None, budget: str | None) -> dict[str, Any]:
    """`--epochs` or `--budget` as settings; raises DeitkitError where both are given."""
    if epochs is not None and budget is not None:
        raise SettingError("--epochs and --budget both say how long to train; give one of them")
    return {"train.epochs": epochs, "train.budget_s": parse_budget(budget) if budget else None}


def parse_budget(text: str) -> float:
    """Seconds of `90s`, `10m`, `1.5h` or a plain number of seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip().lower())
    if match is None or float(match[1]) == 0:
        raise SettingError(f"--budget {text!r} is no time; give one such as 90s, 10m or 1.5h")
    return float(match[1]) * _UNITS[match[2]]
