"""Reading and writing files: atomic writes, UTF-8, typed JSON, safetensors."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import glob
import hashlib
import json
import math
import os
import re
import secrets
import stat
import time
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .errors import RunFolderError

_ABANDONED_SECONDS = 24 * 3600.0
_LARGEST_TEXT = 1 << 28  # bytes; a log or a split of millions of images is smaller
T = TypeVar("T")


def refuse_occupied(out: Path, *, without: str | None = None, own: Collection[str] = ()) -> None:
    """Raises RunFolderError if `out` is a file, or a folder that contains more than the names in `own`.

    without: what the folder would need to contain for a job to resume there, such as "run".
    """
    if out.is_file():
        raise RunFolderError(f"{out} is a file; choose an empty or a new folder for --out")
    if out.exists() and any(file.name not in own and file.suffix != ".part" for file in out.iterdir()):
        lacks = f" and holds no {without}" if without is not None else ""
        raise RunFolderError(f"{out} is not empty{lacks}; choose an empty or a new folder for --out")


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, renamed to `path` on success and removed on failure.

    The file gets the permissions that `open` would give it, whatever wrote it. Also removes temporary files
    of `path` that a killed process left more than a day ago.
    """
    for left in path.parent.glob(f"{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                left.unlink()
    # Another process may write the same file, and processes in containers may share a process id.
    side = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    side.touch()
    mode = stat.S_IMODE(side.stat().st_mode)
    try:
        yield side
        with contextlib.suppress(OSError):  # some file systems have no permissions
            side.chmod(mode)  # safetensors writes files that only their owner can read
        side.replace(path)
    finally:
        with contextlib.suppress(OSError):
            side.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8, atomically.

    Surrogates, which stand for bytes of file names that are not UTF-8, are written as backslash escapes.
    """
    with written_aside(path) as side:
        side.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as JSON, atomically."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False))


def read_text(path: Path) -> str:
    """Reads a UTF-8 file. Raises OSError if there is none, ValueError if it is too large or not UTF-8."""
    if not path.is_file():  # reading a pipe or a device may never end
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if path.stat().st_size > _LARGEST_TEXT:
        raise ValueError(f"it is larger than {_LARGEST_TEXT >> 20} MiB")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None


def read_json(path: Path) -> Any:
    """Reads a JSON file. Raises OSError if there is none, ValueError if it is not JSON in UTF-8."""
    text = read_text(path)
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON (line {error.lineno}, column {error.colno})") from None


def parse_json(kind: type[T], value: Any, *, lenient: bool = False) -> T:
    """Converts parsed JSON to the type `kind`.

    kind: a dataclass, whose fields may be dataclasses, tuples, lists, dicts of str, optional, Literal, str,
    bool, int, float or Any. Fields with a default may be missing. lenient: ignores keys that are not fields
    and accepts numbers that are not finite. Raises ValueError, naming the place ("student.depth is "x", not
    an integer"), if the value does not fit.
    """
    converted: T = _Parser(lenient).parse(kind, value, "")
    return converted


@dataclasses.dataclass(frozen=True)
class _Parser:
    lenient: bool

    def parse(self, kind: Any, value: Any, at: str) -> Any:
        origin, args = typing.get_origin(kind), typing.get_args(kind)
        if kind is Any:
            return value
        if origin in (types.UnionType, typing.Union):  # X | None
            inner = next(a for a in args if a is not type(None))
            return None if value is None else self.parse(inner, value, at)
        if origin is Literal:
            if not isinstance(value, dict | list) and value in args:
                return value
            raise _misfit(at, value, f"one of {', '.join(map(repr, args))}")
        if dataclasses.is_dataclass(kind):
            return self.fields(kind, value, at)
        if origin is dict:
            if not isinstance(value, dict):
                raise _misfit(at, value, "an object")
            return {k: self.parse(args[1], v, _inside(at, k)) for k, v in value.items()}
        if origin in (tuple, list):
            return self.items(origin, args, value, at)
        return self.scalar(kind, value, at)

    def scalar(self, kind: type, value: Any, at: str) -> Any:
        if kind is float and type(value) in (int, float):
            with contextlib.suppress(OverflowError):
                number = float(value)
                if self.lenient or math.isfinite(number):
                    return number
        elif type(value) is kind:
            return value
        names = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
        raise _misfit(at, value, names[kind])

    def fields(self, kind: Any, value: Any, at: str) -> Any:
        if not isinstance(value, dict):
            raise _misfit(at, value, "an object")
        hints, fields = typing.get_type_hints(kind), {f.name: f for f in dataclasses.fields(kind)}
        unknown = [key for key in value if key not in fields]
        if unknown and not self.lenient:
            raise ValueError(f"{at or 'the content'} has an unknown entry {unknown[0]!r}")
        for name, field in fields.items():
            required = field.default is field.default_factory is dataclasses.MISSING
            if required and name not in value:
                raise ValueError(f"{_inside(at, name)} is missing")
        known = {name: v for name, v in value.items() if name in fields}
        return kind(**{name: self.parse(hints[name], v, _inside(at, name)) for name, v in known.items()})

    def items(self, origin: Any, args: tuple[Any, ...], value: Any, at: str) -> Any:
        if not isinstance(value, list):
            raise _misfit(at, value, "a list")
        any_length = origin is list or args[-1] is Ellipsis
        if not any_length and len(value) != len(args):
            raise _misfit(at, value, f"a list of {len(args)} values")
        kinds = [args[0]] * len(value) if any_length else args
        return origin(
            self.parse(k, v, f"{at}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True))
        )


def _misfit(at: str, value: Any, wanted: str) -> ValueError:
    shown = json.dumps(value)
    shown = shown if len(shown) <= 40 else f"{shown[:37]}..."
    return ValueError(f"{at or 'the content'} is {shown}, not {wanted}")


def _inside(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def create_folder(folder: Path) -> None:
    """Creates `folder` and its parents. Raises RunFolderError where there can be none, as in a file."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileNotFoundError, FileExistsError) as error:
        raise RunFolderError(
            f"the folder {folder} cannot be created ({error.strerror}); choose another --out"
        ) from None


def claim_file(path: Path) -> None:
    """Creates the folder of `path`. Raises RunFolderError if no file can be written there.

    A mistake then ends a job before its work rather than after it.
    """
    if path.is_dir():
        raise RunFolderError(f"{path} is a folder; give the name of a file")
    create_folder(path.parent)
    there = path.exists()
    try:
        path.open("ab").close()
    except FileNotFoundError as error:  # a file system without files of its own
        raise RunFolderError(
            f"the file {path} cannot be created ({error.strerror}); choose another one"
        ) from None
    if not there:
        path.unlink()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes `tensors` as safetensors, atomically, and flushes them to disk.

    Raises OSError if the disk is full or a quota is exceeded, as other writes do.
    """
    with written_aside(path) as side:
        try:
            save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, side, metadata)
        except SafetensorError as error:
            # safetensors reports errors of the operating system only in words.
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        with open(side, "r+b") as written:  # on Windows only a writable file can be flushed
            os.fsync(written.fileno())


def digest(tensors: Mapping[str, Tensor], facts: str = "") -> str:
    """A SHA-256 of named tensors on the CPU, and of `facts` beside them: safetensors has no checksum."""
    found = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
