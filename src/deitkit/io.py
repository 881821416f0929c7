"""Files that are whole or not there, in UTF-8, and a full disk that says so."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import glob
import json
import math
import os
import re
import secrets
import time
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .errors import RunFolderError

_ABANDONED_SECONDS = 24 * 3600.0
_LARGEST_JSON = 1 << 28  # bytes; a log or a split of millions of images is smaller


def refuse_occupied(out: Path, *, without: str | None = None, own: Collection[str] = ()) -> None:
    """Raises DeitkitError where `out` is a file, or a folder with other things than the names in `own`.

    without: what it would have to hold to be taken up again, such as "run"; None where nothing can be.
    """
    if out.is_file():
        raise RunFolderError(f"{out} is a file; choose an empty or a new folder for --out")
    if out.exists() and any(file.name not in own and file.suffix != ".part" for file in out.iterdir()):
        lacks = f" and holds no {without}" if without is not None else ""
        raise RunFolderError(f"{out} is not empty{lacks}; choose an empty or a new folder for --out")


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when all went well and is removed when it did not.

    What a killed process left of the same file goes too, once nobody has touched it for a day.
    """
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                left.unlink()
    # Others may write the same file, and in containers several processes have one number.
    side = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        yield side
        side.replace(path)
    finally:
        with contextlib.suppress(OSError):
            side.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8 to the side and renames.

    A file name that is no UTF-8 holds surrogates, which keep their backslash form, as JSON has it too.
    """
    with written_aside(path) as side:
        side.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as JSON, as `write_text` writes."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False))


def read_json(path: Path) -> Any:
    """What `write_json` wrote. Raises OSError or ValueError if there is no such file, or no JSON in it."""
    if not path.is_file():  # a pipe or a device would be read for ever
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if path.stat().st_size > _LARGEST_JSON:
        raise ValueError(f"it has more than {_LARGEST_JSON >> 20} MiB")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_json(hint: Any, value: Any, name: str = "") -> Any:
    """`value`, as JSON has it, as the type `hint`: a dataclass, tuple, dict, union, Literal or plain type.

    name: of `value`, for messages. Raises ValueError, naming the entry, if a value is missing, unknown or of
    another type.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    where = name or "the content"
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return _parse_dataclass(hint, value, name)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return parse_json(next(a for a in args if a is not type(None)), value, name)
    if origin is typing.Literal:
        if value not in args:
            raise ValueError(f"{where} is none of {', '.join(map(str, args))}")
        return value
    if origin is tuple and isinstance(value, list):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise ValueError(f"{where} has {len(value)} entries instead of {len(kinds)}")
        return tuple(
            parse_json(k, v, f"{name}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True))
        )
    if origin is dict and isinstance(value, dict):
        return {k: parse_json(args[1], v, f"{name}.{k}") for k, v in value.items()}
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"{where} is {value}")
        return float(value)
    if origin is None and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    wanted = getattr(hint, "__name__", str(hint))
    raise ValueError(f"{where} has the type {type(value).__name__} instead of {wanted}")


def _parse_dataclass(cls: Any, value: Any, name: str) -> Any:
    where = name or "the content"
    if not isinstance(value, dict):
        raise ValueError(f"{where} has the type {type(value).__name__} instead of an object")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in value:
        if key not in fields:
            raise ValueError(f"{where} has an unknown entry {key!r}")
    dot = f"{name}." if name else ""
    for key, field in fields.items():
        optional = (
            field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        )
        if key not in value and not optional:
            raise ValueError(f"{dot}{key} is missing")
    return cls(**{key: parse_json(hints[key], v, f"{dot}{key}") for key, v in value.items()})


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """A log of one JSON object a line; nothing where there is no such file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes `tensors` as safetensors to the side, flushes them to the disk, and renames.

    Raises OSError, as any other writing would, where the disk is full or a quota is spent.
    """
    with written_aside(path) as side:
        try:
            save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, side, metadata)
        except SafetensorError as error:
            # safetensors tells an operating system's error in words only.
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        with open(side, "r+b") as written:  # Windows flushes only what may be written
            os.fsync(written.fileno())
