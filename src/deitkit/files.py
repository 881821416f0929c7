"""Files that are whole or not there, and a full disk that says so."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8 to the side and renames; a name that is no UTF-8 keeps a backslash form."""
    side = path.with_name(f"{path.name}.{os.getpid()}.part")  # others may write the same file
    side.write_text(text, encoding="utf-8", errors="backslashreplace")
    side.replace(path)


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as JSON, as `write_text` writes."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes `tensors` as safetensors to the side, flushes them to the disk, and renames.

    Raises OSError, as any other writing would, where the disk is full or a quota is spent.
    """
    side = path.with_suffix(".part")
    try:
        save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, side, metadata)
        with open(side, "rb") as written:
            os.fsync(written.fileno())
        side.replace(path)
    except SafetensorError as error:
        side.unlink(missing_ok=True)
        # safetensors tells an operating system's error in words only.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
