"""`deitkit pack`: labelled images into WebDataset shards or Parquet files, which many tools read.

Names, labels, split and order stay, and so do the bytes unless a size is given: a model trained on the pack
is the one trained on the folder. Within a split the images are shuffled over the shards, for readers that
stream them; deitkit restores the order. A shard is written under another name and renamed when it is whole,
so that a pack that was killed goes on at the next shard. `pack.json` holds the checksum of each.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from .. import log
from ..errors import DataError, RunFolderError, SettingError
from ..io import create_folder, parse_json, read_json, refuse_occupied, write_json, written_aside
from ..locks import Claims
from .cache import refuse_many_unreadable
from .decode import UnreadableImage, open_rgb
from .folder import SUFFIXES
from .image_set import ImageSet
from .rng import hashed
from .source import FINISHED, PACK, importing
from .splits import given_images, refuse_out_among_classes
from .stored import ImageFile, read_bytes

_LOCK = "lock"
_VERSION = 1
_ROWS_PER_GROUP = 64  # what is read to get at one image of a Parquet file
_FEW = 1_000_000  # shards


@dataclass(frozen=True)
class PackPlan:
    """What is packed, and how. fingerprint: of the images. sums: SHA-256 of each shard, once it is whole."""

    to: str
    fingerprint: str
    images: int
    classes: tuple[str, ...]
    images_per_shard: int
    size: int | None = None
    quality: int | None = None
    group: str | None = None
    version: int = _VERSION
    sums: dict[str, str] | None = None


@dataclass(frozen=True)
class Packed:
    """A finished pack. bytes: of all shards. skipped: (path, reason) of images that could not be decoded."""

    folder: Path
    shards: int
    images: int
    bytes: int
    skipped: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Item:
    """An image as it is packed. suffix: with its dot."""

    index: int
    path: str
    suffix: str
    content: bytes
    labels: Sequence[str]
    class_index: int | None  # multiclass
    split: str | None
    group: str | None


def pack(
    data: str | Path,
    out: str | Path,
    *,
    to: str = "webdataset",
    size: int | None = None,
    quality: int = 90,
    images_per_shard: int = 1000,
    group: str | None = None,
    workers: int | None = None,
) -> Packed:
    """Packs the labelled images of `data` into the folder `out`; a pack that was interrupted goes on.

    Args:
        to: "webdataset" or "parquet".
        size: Resize images whose shorter side is longer than this many pixels to it, and save all as JPEG.
        quality: Of the JPEGs, from 1 to 100.
        group: A column of a table to keep, for `data.group`.
        workers: Threads that read and resize; by default one per core.

    Raises a DeitkitError.
    """
    data, out = Path(data), Path(out)
    if to not in WRITERS:
        raise SettingError(f"there is no format {to!r}; give --to {' or '.join(WRITERS)}")
    if not (1 <= quality <= 100 and images_per_shard >= 1 and (size is None or size >= 8)):
        raise SettingError("give a --quality from 1 to 100, a --size of at least 8, and images per shard")
    if to == "parquet":
        with importing("pyarrow", data):
            import pyarrow.parquet  # noqa: F401
    refuse_out_among_classes(data, out)
    with log.activity("looking at the images"):
        images, splits, groups = given_images(data, group)
        plan = PackPlan(
            to,
            images.fingerprint(times=False),
            len(images),
            images.classes,
            images_per_shard,
            size,
            quality if size is not None else None,
            group,
        )
    shards = _shards(splits, len(images), images_per_shard)
    if (out / PACK).exists():
        _refuse_other(out, plan)
    else:
        refuse_occupied(out, own={_LOCK})
        create_folder(out)
    with Claims(out / _LOCK) as claims:
        if not claims.take(0, required=False):
            raise RunFolderError(f"another process packs into {out}; wait until it ends")
        return _write(out, plan, shards, _Reader(images, splits, groups, size, quality), workers)


def verify(folder: Path, advance: Callable[[int], None] = lambda n: None) -> int:
    """Compares each shard of a finished pack with its checksum; returns how many there are.

    Raises DataError for a shard that is missing or has changed, and for a pack that is not finished.
    """
    sums = _read_plan(folder).sums
    if sums is None:
        raise DataError(f"the pack in {folder} is not finished; run its deitkit pack again")
    for name, expected in sums.items():
        if not (folder / name).is_file():
            raise DataError(f"{folder / name} is missing; restore it, or pack the images again")
        with open(folder / name, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise DataError(f"{folder / name} has changed since it was packed; restore it, or pack again")
        advance(1)
    return len(sums)


def shards_of(folder: Path) -> int:
    """The number of shards of a finished pack. Raises DataError."""
    return len(_read_plan(folder).sums or ())


def _read_plan(folder: Path) -> PackPlan:
    try:
        plan = parse_json(PackPlan, read_json(folder / PACK))
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} is no pack ({PACK}: {error}); give the folder of one") from None
    for name in plan.sums or ():
        if name != os.path.basename(name) or name.startswith("."):
            raise DataError(f"{folder / PACK} names {name!r}, which is no file beside it; pack again")
    return plan


def _refuse_other(out: Path, plan: PackPlan) -> None:
    """Raises RunFolderError if `out` holds a pack of other images or settings."""
    old, new = asdict(_read_plan(out)), asdict(plan)
    different = [key for key in new if key != "sums" and old[key] != new[key]]
    if different:
        key = different[0]
        what = "images or classes have changed" if key in ("fingerprint", "images", "classes") else None
        what = what or f"{key} was {old[key]} and is now {new[key]}"
        raise RunFolderError(f"{out} holds another pack: its {what}; choose another --out")


def _shards(splits: Sequence[str] | None, count: int, most: int) -> dict[str, list[int]]:
    """The images of each shard, by the shard's name without its suffix."""
    found: dict[str, list[int]] = {}
    order = np.argsort(hashed(0, np.arange(count)), kind="stable")
    of = np.array(splits) if splits is not None else np.full(count, "shard")
    for name in ("train", "val", "test", "shard"):
        members = order[of[order] == name]
        for number, first in enumerate(range(0, len(members), most)):
            found[f"{name}-{number:06d}"] = members[first : first + most].tolist()
    if len(found) > _FEW:
        raise SettingError(f"that makes {len(found):,} shards; give more images per shard")
    return found


@dataclass(frozen=True)
class _Reader:
    """Reads images as they are packed."""

    images: ImageSet
    splits: Sequence[str] | None
    groups: Sequence[str] | None
    size: int | None
    quality: int

    def __call__(self, index: int) -> _Item | tuple[str, str]:
        """The image; or (path, reason) if it cannot be read."""
        file, path = self.images.file(index), self.images.paths[index]
        try:
            content, suffix = self._content(file, path)
        except UnreadableImage as error:
            return path, error.reason
        except (OSError, ValueError) as error:
            return path, getattr(error, "strerror", None) or str(error)
        row = self.images.labels[index]
        single = self.images.task == "multiclass"
        of = [int(row)] if single else np.flatnonzero(row).tolist()
        return _Item(
            index,
            _as_name(path),
            suffix,
            content,
            [self.images.classes[k] for k in of],
            of[0] if single else None,
            self.splits[index] if self.splits is not None else None,
            self.groups[index] if self.groups is not None else None,
        )

    def _content(self, file: ImageFile, path: str) -> tuple[bytes, str]:
        if self.size is None:
            suffix = os.path.splitext(path)[1].lower()
            content = read_bytes(file)
            return content, suffix if suffix in SUFFIXES else _suffix_of(content)
        image = open_rgb(file, at_least=2 * self.size)
        shorter = min(image.size)
        if shorter > self.size:
            sides = [max(1, round(side * self.size / shorter)) for side in image.size]
            image = image.resize((sides[0], sides[1]), Image.Resampling.BICUBIC, reducing_gap=3.0)
        made = io.BytesIO()
        image.save(made, "JPEG", quality=self.quality)
        return made.getvalue(), ".jpg"


def _as_name(path: str) -> str:
    """The path as a stable name; of an image outside the folder, without the root."""
    return "/".join(part for part in path.replace("\\", "/").split("/") if part not in ("", ".", ".."))


def _suffix_of(content: bytes) -> str:
    """By the first bytes, for a name that does not tell."""
    starts = {
        b"\x89PNG": ".png",
        b"GIF8": ".gif",
        b"RIFF": ".webp",
        b"BM": ".bmp",
        b"II": ".tif",
        b"MM": ".tif",
    }
    return next((suffix for start, suffix in starts.items() if content.startswith(start)), ".jpg")


def _write(
    out: Path, plan: PackPlan, shards: Mapping[str, list[int]], read: _Reader, workers: int | None
) -> Packed:
    write, suffix = WRITERS[plan.to]
    if _read_sums(out, plan) is None:
        write_json(out / PACK, asdict(plan))
    sums, skipped = _finished(out, plan)
    with (
        ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool,
        log.progress_bar("packing", plan.images) as advance,
    ):
        for stem, members in shards.items():
            name = stem + suffix
            if name in sums:
                advance(len(members))
                continue
            lost: list[tuple[str, str]] = []
            with written_aside(out / name) as side, open(side, "wb") as file:
                write(file, _read_items(members, read, pool, lost, advance), plan)
                file.flush()
                os.fsync(file.fileno())
            with open(out / name, "rb") as file:
                sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
            skipped += lost
            refuse_many_unreadable(skipped, plan.images) if lost else None
            with open(out / FINISHED, "a", encoding="utf-8") as finished:
                finished.write(json.dumps({"shard": name, "sum": sums[name], "skipped": lost}) + "\n")
                finished.flush()
                os.fsync(finished.fileno())
    write_json(out / PACK, asdict(plan) | {"sums": {stem + suffix: sums[stem + suffix] for stem in shards}})
    for name in (FINISHED, _LOCK):
        (out / name).unlink(missing_ok=True)
    total = sum((out / name).stat().st_size for name in sums)
    return Packed(out, len(sums), plan.images - len(skipped), total, tuple(skipped))


def _read_sums(out: Path, plan: PackPlan) -> dict[str, str] | None:
    return _read_plan(out).sums if (out / PACK).exists() else None


def _finished(out: Path, plan: PackPlan) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Checksums of the shards that are whole, and what was skipped in them."""
    if not (out / FINISHED).exists():
        done = _read_sums(out, plan) or {}
        return {name: found for name, found in done.items() if (out / name).is_file()}, []
    sums: dict[str, str] = {}
    skipped: list[tuple[str, str]] = []
    for text in (out / FINISHED).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
            name, found, lost = line["shard"], line["sum"], [(path, why) for path, why in line["skipped"]]
        except (ValueError, TypeError, KeyError):  # cut off as the process was killed
            continue
        if (out / name).is_file() and name not in sums:
            sums[name] = found
            skipped += lost
    return sums, skipped


def _read_items(
    members: Sequence[int],
    read: _Reader,
    pool: ThreadPoolExecutor,
    lost: list[tuple[str, str]],
    advance: Callable[[int], None],
) -> Iterator[_Item]:
    at_once = 64  # bounds what is in memory
    for first in range(0, len(members), at_once):
        for found in pool.map(read, members[first : first + at_once]):
            advance(1)
            if isinstance(found, _Item):
                yield found
            else:
                lost.append(found)


# The formats


def _write_tar(file: BinaryIO, items: Iterator[_Item], plan: PackPlan) -> None:
    """`KEY.jpg`, `KEY.cls` with the index of the class, and `KEY.json` with the rest."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for item in items:
            facts: dict[str, Any] = {"path": item.path, "index": item.index}
            facts |= {"labels": list(item.labels)} if item.class_index is None else {"label": item.labels[0]}
            facts |= {"split": item.split} if item.split is not None else {}
            facts |= {str(plan.group): item.group} if item.group is not None else {}
            key = f"{item.index:09d}"
            _add(tar, key + item.suffix, item.content)
            if item.class_index is not None:
                _add(tar, f"{key}.cls", str(item.class_index).encode())
            _add(tar, f"{key}.json", json.dumps(facts).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))


def _write_parquet(file: BinaryIO, items: Iterator[_Item], plan: PackPlan) -> None:
    """Columns that `datasets` shows as labelled images: image, label(s), split, path, size, index."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = next(items, None)
    if first is None:
        raise DataError("no image of a shard can be read; repair or remove them")
    schema = _schema(first, plan)
    rest = itertools.chain([first], items)
    with pq.ParquetWriter(file, schema, compression="none", use_dictionary=["label", "split"]) as writer:
        while rows := [_row(item, plan) for item in itertools.islice(rest, _ROWS_PER_GROUP)]:
            writer.write_table(pa.Table.from_pylist(rows, schema), row_group_size=_ROWS_PER_GROUP)


def _row(item: _Item, plan: PackPlan) -> dict[str, Any]:
    image = {"bytes": item.content, "path": os.path.basename(item.path)}
    row = {"image": image, "path": item.path, "size": len(item.content), "index": item.index}
    row |= {"label": item.labels[0]} if item.class_index is not None else {"labels": list(item.labels)}
    return row | {"split": item.split, str(plan.group): item.group}


def _schema(first: _Item, plan: PackPlan) -> Any:
    """Arrow's schema, with what `datasets` notes in it."""
    import pyarrow as pa

    text, number = {"dtype": "string", "_type": "Value"}, {"dtype": "int64", "_type": "Value"}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns: list[tuple[str, Any, Any]] = [("image", image, {"_type": "Image"})]
    if first.class_index is not None:
        columns.append(("label", pa.string(), text))
    else:
        columns.append(("labels", pa.list_(pa.string()), {"feature": text, "_type": "List"}))
    columns += [("split", pa.string(), text)] if first.split is not None else []
    columns += [(str(plan.group), pa.string(), text)] if first.group is not None else []
    columns += [("path", pa.string(), text), ("size", pa.int64(), number), ("index", pa.int64(), number)]
    noted = {"info": {"features": {name: feature for name, _, feature in columns}}}
    return pa.schema([(name, kind) for name, kind, _ in columns], {"huggingface": json.dumps(noted)})


WRITERS: dict[str, tuple[Callable[[BinaryIO, Iterator[_Item], PackPlan], None], str]] = {
    "webdataset": (_write_tar, ".tar"),
    "parquet": (_write_parquet, ".parquet"),
}
