"""`deitkit pack`: images into shards or tables that many tools read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import log


def pack(
    data: Annotated[
        Path, typer.Argument(help="Labelled images, as for deitkit train; with --verify a finished pack.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the pack.")] = None,
    to: Annotated[str, typer.Option("--to", help="webdataset or parquet.")] = "webdataset",
    size: Annotated[
        int | None,
        typer.Option(
            min=8, help="Shorter side in pixels of larger images, saved as JPEG; as they are by default."
        ),
    ] = None,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of the JPEGs with --size.")] = 90,
    images_per_shard: Annotated[int, typer.Option(min=1, help="Images in each file.")] = 1000,
    group_by: Annotated[
        str | None, typer.Option(help="A column of the table to keep, for deitkit train --group-by.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads; one per core by default.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare the shards of a pack with their checksums.")
    ] = False,
) -> None:
    """Pack labelled images into WebDataset shards or Parquet files. Run it again to resume."""
    from ..data import packing
    from ..errors import SettingError

    if verify:
        if out is not None:
            raise SettingError("--verify reads the pack in DATA; leave out --out")
        with log.progress_bar("verifying", packing.shards_of(data), "shards") as advance:
            count = packing.verify(data, advance)
        print(f"{count} shards are as they were packed")
        return
    if out is None:
        raise SettingError("a pack needs a folder; give --out")
    made = packing.pack(
        data,
        out,
        to=to,
        size=size,
        quality=quality,
        images_per_shard=images_per_shard,
        group=group_by,
        workers=workers,
    )
    files = f"{made.shards:,} shard{'s' if made.shards > 1 else ''}"
    print(f"{made.images:,} images in {files}, {made.bytes / 1e6:,.1f} MB: {made.folder}")
