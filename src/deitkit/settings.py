"""How a setting is declared, parsed and checked. `config` declares all of them.

    lr: float = setting(5e-4, "Learning rate at `lr_batch` images per step.", at_least(0))

A declaration holds all that is known about a setting: type, default, help and allowed values. The
command line, `deitkit settings` and every check read it from there.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .errors import SettingError

Auto = Literal["auto"]
AUTO: Auto = "auto"  # chosen from the data, the device or the other settings; never the same as None


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may take; `wanted` says them in words."""

    low: float
    high: float = math.inf
    wanted: str = ""
    open_low: bool = False  # `low` itself is excluded
    open_high: bool = False

    def problem(self, value: Any) -> str | None:
        """What is wrong with a number, or with any of a tuple of numbers; None if nothing is."""
        numbers = value if isinstance(value, tuple) else (value,)
        if all(self._allows(number) for number in numbers if isinstance(number, (int, float))):
            return None
        shown = list(value) if isinstance(value, tuple) else value
        return f"is {shown}; give {self.wanted}"

    def _allows(self, number: float) -> bool:
        above = number > self.low if self.open_low else number >= self.low
        below = number < self.high if self.open_high else number <= self.high
        return above and below  # NaN fails both


@dataclass(frozen=True)
class Registered:
    """The names in a registry, a dict in some module, that is imported only when it is needed."""

    module: str
    registry: str
    also: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.also, *getattr(importlib.import_module(self.module, __package__), self.registry))

    @property
    def wanted(self) -> str:
        return f"one of {', '.join(self.names)}"

    def problem(self, value: Any) -> str | None:
        """What is wrong with a name, or with any of a tuple of names; None if nothing is."""
        unknown = [
            name for name in (value if isinstance(value, tuple) else (value,)) if name not in self.names
        ]
        return f"cannot be {unknown[0]!r}; choose {self.wanted}" if unknown else None


Allowed = Range | Registered


def at_least(low: float) -> Range:
    return Range(low, wanted=f"{low:g} or more", open_high=True)


def above(low: float) -> Range:
    wanted = f"more than {low:g}"
    return Range(low, wanted=wanted, open_low=True, open_high=True)


def share(*, zero: bool = True, one: bool = True) -> Range:
    """A number from 0 to 1, with or without the ends."""
    wanted = {
        (True, True): "a share from 0 to 1",
        (True, False): "a share from 0 up to, but not including, 1",
        (False, True): "a share above 0, up to 1",
        (False, False): "a share above 0 and below 1",
    }[zero, one]
    return Range(0, 1, wanted, open_low=not zero, open_high=not one)


SEED = Range(0, 2**32 - 1, f"a whole number from 0 to {2**32 - 1}")


def setting(default: Any, help: str, allowed: Allowed | None = None) -> Any:
    """A field of a section of the settings."""
    return dataclasses.field(default=default, metadata={"help": help, "allowed": allowed})


class Section:
    """Base class of a section: a frozen dataclass whose fields are declared with `setting`."""

    @classmethod
    def declared(cls, name: str) -> Mapping[str, Any]:
        """Help and allowed values of a setting; a resolved section inherits what it only narrows."""
        fields = (base.__dict__.get("__dataclass_fields__", {}).get(name) for base in cls.__mro__)
        return next(field.metadata for field in fields if field is not None and field.metadata)

    def problems(self, name: str) -> list[str]:
        """`"section.key is 2; give ..."` for every setting out of range; `name` is the section's.

        A section whose settings can contradict each other adds what is wrong with them.
        """
        problems = []
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value, allowed = getattr(self, field.name), self.declared(field.name)["allowed"]
            if allowed is not None and value is not None and value != AUTO:
                problem = allowed.problem(value)
                if problem is not None:
                    problems.append(f"{name}.{field.name} {problem}")
        return problems


def raise_all(problems: Iterable[str]) -> None:
    """Raises SettingError with every problem, one per line; does nothing without any."""
    found = list(problems)
    if found:
        raise SettingError("\n".join(found))


def parse(key: str, value: Any, hint: Any) -> Any:
    """`value`, from the command line or from JSON, as the type `hint`. Raises SettingError."""
    try:
        return _parsed(value, hint)
    except (ValueError, TypeError) as error:
        raise SettingError(f"setting {key!r} cannot be {value!r}: {error}") from None


def _parsed(value: Any, hint: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _parsed_union(value, args)
    if origin is Literal:
        if value not in args:
            raise ValueError(f"choose one of {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        parts = value.lower().replace("x", ",").split(",") if isinstance(value, str) else value
        parts = [parts] if isinstance(parts, (int, float)) else list(parts)
        if args[-1] is Ellipsis:
            return tuple(_parsed(part, args[0]) for part in parts)
        parts = parts * len(args) if len(parts) == 1 else parts
        if len(parts) != len(args):
            raise ValueError(f"give {len(args)} numbers, such as 0.1,0.9")
        return tuple(_parsed(part, of) for part, of in zip(parts, args, strict=True))
    if hint is bool and isinstance(value, str):
        if value.lower() not in ("true", "false"):
            raise ValueError("give true or false")
        return value.lower() == "true"
    if hint is int and isinstance(value, float) and not value.is_integer():
        raise ValueError("give a whole number")
    try:
        return hint(value)
    except ValueError:
        if hint not in (int, float):
            raise
        raise ValueError("give a whole number" if hint is int else "give a number") from None


def _parsed_union(value: Any, args: tuple[Any, ...]) -> Any:
    """One of several types: "auto", None, or the remaining one."""
    optional = type(None) in args
    automatic = any(typing.get_origin(arg) is Literal for arg in args)
    word = value.lower() if isinstance(value, str) else value
    if automatic and (word == AUTO or (word is None and not optional)):  # version 0.1 wrote null for "auto"
        return AUTO
    if optional and word in (None, "none"):
        return None
    [other] = [arg for arg in args if arg is not type(None) and typing.get_origin(arg) is not Literal]
    return _parsed(value, other)
