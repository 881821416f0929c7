"""What flags and `--set` items say, as settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import DeitkitError


def settings_of(named: dict[str, Any], items: Sequence[str] | None) -> dict[str, Any]:
    """`{"section.key": value}`: the flags that were given, and then each "section.key=value"."""
    settings = {key: value for key, value in named.items() if value is not None}
    for item in items or []:
        key, equals, value = item.partition("=")
        if not equals:
            raise DeitkitError(f"--set {item!r} has no value; give it as section.key=value")
        settings[key.strip()] = value.strip()
    return settings
