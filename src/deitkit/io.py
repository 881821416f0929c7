"""Files that are whole or not there, in UTF-8, and a full disk that says so."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import secrets
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .errors import RunFolderError

_ABANDONED_SECONDS = 24 * 3600.0


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
    """What `write_json` wrote; raises OSError or ValueError where it is not there or not JSON."""
    return json.loads(path.read_text(encoding="utf-8"))


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
