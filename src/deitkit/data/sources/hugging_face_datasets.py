"""Data sets of the Hugging Face Hub: `hf:NAME`, `hf:NAME:CONFIG` or `hf:NAME@REVISION`.

`datasets` downloads them into its own cache, also from a local folder that it knows; from there on images are
read by row. A data set that is streamed has no rows, so that it could be neither resumed nor split, and is
downloaded like the others. Code that a data set comes with never runs.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ... import log
from ...errors import DataError
from ..image_listing import Listing
from ..source import DataSource, importing, register, shown
from .arrow_tables import list_tables, split_of_saved

_SPEC = re.compile(r"hf:([^:@]+)(?::([^@]+))?(?:@(.+))?")


@register
class HuggingFaceDatasets(DataSource):
    name = "hf"

    def recognises(self, data: Path, entries: Collection[str]) -> bool:
        return data.as_posix().startswith("hf:")

    def list(self, data: Path, group: str | None) -> Listing:
        found = _SPEC.fullmatch(data.as_posix())
        if found is None:
            raise DataError(f"{data} names no data set; give hf:NAME, hf:NAME:CONFIG or hf:NAME@REVISION")
        with importing("datasets", data):
            import datasets
        with log.activity(f"loading {shown(data)}"):
            splits = _load(data, datasets, *found.groups())
        files, of = list[Path](), list[str]()
        for name, split in splits.items():
            parts = [Path(part["filename"]) for part in split.cache_files]
            files += parts
            of += [split_of_saved(str(name), data)] * len(parts)
        return list_tables(data, files, of if len(set(of)) > 1 else None, group=group)


def _load(data: Path, datasets: Any, name: str, config: str | None, revision: str | None) -> dict[str, Any]:
    """The splits. Raises DataError if they cannot be had."""
    quiet = datasets.utils.logging.is_progress_bar_enabled()
    datasets.utils.logging.disable_progress_bar()
    # Before version 4, code that comes with a data set could run.
    old = int(datasets.__version__.partition(".")[0]) < 4
    options: dict[str, Any] = {"trust_remote_code": False} if old else {}
    try:
        found = datasets.load_dataset(name, config, revision=revision, **options)
    except Exception as error:  # of the hub, of files, of the data set's own format
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{data} cannot be loaded ({reason}); check its name, or the connection") from None
    finally:
        if quiet:
            datasets.utils.logging.enable_progress_bar()
    return dict(found)
