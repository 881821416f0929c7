"""What each source of images costs beside a folder: images per second, and the time and memory of listing.

    python benchmarks/sources.py speed --images 100000 --work DIR --out results/sources/speed.csv
    python benchmarks/sources.py list --samples 1300000 --work DIR --out results/sources/listing.csv
    python benchmarks/sources.py shuffle --out results/sources/shuffle.csv

`speed` makes small JPEGs (128 x 128, smooth noise), packs them as each source, and reads and decodes them for
views of 96 pixels in one thread: in the source's order, as when the cache is filled, and in an epoch's random
order, as without a cache. Rounds go over the sources in turns; the median is kept. `list` makes an index of
so many samples and measures, in a process of its own, the time until splits are known and the most memory.
`shuffle` measures how far epochs are from uniformly random orders.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from provenance import provenance
from rows import append_row

CLASSES = 100
SPEED = (
    "source",
    "order",
    "images",
    "images_per_s",
    "relative",
    "load",
    "date",
    "versions",
    "machine",
    "command",
)
LISTING = (
    "source",
    "samples",
    "first_s",
    "first_cpu_s",
    "again_s",
    "again_cpu_s",
    "peak_mb",
    "import_mb",
    "load",
    "date",
    "versions",
    "machine",
    "command",
)
SHUFFLE = (
    "images",
    "world",
    "epochs",
    "measure",
    "value",
    "uniform",
    "date",
    "versions",
    "machine",
    "command",
)


def about(arguments: argparse.Namespace) -> dict[str, Any]:
    facts = provenance()
    facts["command"] = facts["command"].replace(str(arguments.work), "DIR")
    return facts | {"versions": json.dumps(facts["versions"]), "load": f"{os.getloadavg()[0]:.1f}"}


# Images per second


def make_images(folder: Path, count: int) -> Path:
    if folder.exists():
        return folder
    rng = np.random.RandomState(0)
    made = folder.with_name(folder.name + ".part")
    shutil.rmtree(made, ignore_errors=True)
    for i in range(count):
        of = made / f"class-{i % CLASSES:03d}"
        of.mkdir(parents=True, exist_ok=True)
        noise = Image.fromarray(rng.randint(0, 255, (8, 8, 3)).astype(np.uint8))
        noise.resize((128, 128), Image.Resampling.BICUBIC).save(of / f"{i:07d}.jpg", quality=90)
    made.rename(folder)
    return folder


def make_sources(images: Path, work: Path) -> dict[str, Path]:
    """Each source of the same images, by name; those whose package is missing are left out."""
    from deitkit.data.packing import pack
    from deitkit.data.splits import given_images
    from deitkit.errors import DependencyError

    found = {"folder": images}
    listed = given_images(images)[0]
    table = images / "labels.csv"
    if not table.exists():
        rows = (f"{path},{listed.label_text(i)}" for i, path in enumerate(listed.paths))
        text = "path,label\n" + "\n".join(rows) + "\n"
        table.with_suffix(".part").write_text(text)
        table.with_suffix(".part").rename(table)
    found["csv"] = table
    for to in ("webdataset", "parquet"):
        try:
            pack(images, work / to, to=to)
        except DependencyError as error:
            print(error)
            continue
        found[to] = work / to
    if "parquet" in found:
        import pyarrow as pa
        import pyarrow.parquet as pq

        manifest = images / "manifest.parquet"
        labels = [listed.label_text(i) for i in range(len(listed))]
        pq.write_table(pa.table({"path": list(listed.paths), "label": labels}), manifest)
        found["parquet of paths"] = manifest
        large = work / "row-groups-of-1000.parquet"
        if not large.exists():
            whole = pa.concat_tables(pq.read_table(p) for p in sorted(found["parquet"].glob("*.parquet")))
            pq.write_table(whole, large, row_group_size=1000, compression="none")
        found["parquet, groups of 1000"] = large
    try:
        import datasets

        saved = work / "saved"
        if "parquet" in found and not saved.exists():
            files = [str(p) for p in sorted(found["parquet"].glob("*.parquet"))]
            rows = datasets.load_dataset("parquet", data_files=files, cache_dir=str(work / "hf"))["train"]
            rows.save_to_disk(work / "saved.part")
            (work / "saved.part").rename(saved)
        found["datasets"] = saved
    except ImportError as error:
        print(error)
    return found


def speed(arguments: argparse.Namespace) -> None:
    from deitkit.data.cache import Decoder
    from deitkit.data.sampler import plan_epoch
    from deitkit.data.splits import given_images

    images = make_images(arguments.work / f"images-{arguments.images}", arguments.images)
    found = make_sources(images, arguments.work)
    listed = {name: given_images(data)[0] for name, data in found.items()}
    decoder = Decoder((110, 110), "resize")
    epoch = plan_epoch(arguments.images, batch_size=256, repeats=1, seed=0, epoch=0)
    drawn = np.concatenate([batch.indices for batch in epoch])
    orders = {"in order": np.arange(arguments.images), "random": drawn}
    rates: dict[tuple[str, str], list[float]] = {}
    for round_ in range(arguments.rounds):
        first = round_ * arguments.at_once % max(1, arguments.images - arguments.at_once)
        for order, indices in orders.items():
            for name, of in listed.items():
                chosen = indices[first : first + arguments.at_once]
                began = time.perf_counter()
                for i in chosen:
                    decoder(of.file(int(i)))
                rates.setdefault((name, order), []).append(len(chosen) / (time.perf_counter() - began))
    for (name, order), measured in rates.items():
        rate, folder = statistics.median(measured), statistics.median(rates["folder", order])
        row = {"source": name, "order": order, "images": arguments.images}
        row |= {"images_per_s": f"{rate:.0f}", "relative": f"{rate / folder:.2f}"}
        print(row)
        append_row(arguments.out, SPEED, row | about(arguments))


# Listing

LIST = """
import json, sys, time
from pathlib import Path
from deitkit.config import DataConfig
from deitkit.data.splits import load_splits

def most_memory():
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))

Path("/proc/self/clear_refs").write_text("5")  # else the peak is that of the process that started this one
before = most_memory()
began, worked = time.perf_counter(), time.process_time()
splits = load_splits(Path(sys.argv[1]), DataConfig())
seconds, cpu = time.perf_counter() - began, time.process_time() - worked
peak = most_memory()
count = len(splits.train) + len(splits.val)
print(json.dumps({"s": seconds, "cpu": cpu, "mb": peak / 1024, "import": before / 1024, "n": count}))
"""


def write_shards(folder: Path, samples: int) -> Path:
    """Shards of empty images: an index is made of headers alone."""
    if not folder.exists():
        made = folder.with_name(folder.name + ".part")
        made.mkdir(parents=True)
        per_shard = 10_000
        for shard in range(-(-samples // per_shard)):
            with open(made / f"shard-{shard:06d}.tar", "wb") as file:
                for i in range(shard * per_shard, min(samples, (shard + 1) * per_shard)):
                    file.write(_member(f"class-{i % 1000:04d}/{i:08d}.jpg"))
                file.write(bytes(1024))
        made.rename(folder)
    return folder


def _member(name: str) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = 1
    return member.tobuf(tarfile.USTAR_FORMAT) + bytes(512)


def write_manifest(folder: Path, samples: int) -> Path:
    """A Parquet table of paths, with a file for each row: links to a few files."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not folder.exists():
        made = folder.with_name(folder.name + ".part")
        paths = []
        for k in range(1000):
            (made / f"{k:04d}").mkdir(parents=True)
        for i in range(samples):
            k = i % 1000
            paths.append(f"{k:04d}/{i:08d}.jpg")
            whole = made / f"{k:04d}.jpg"
            if i < 1000:
                whole.write_bytes(b"x")
            os.link(whole, made / paths[-1])
        labels = [f"class-{i % 1000:04d}" for i in range(samples)]
        pq.write_table(pa.table({"path": paths, "label": labels}), made / "manifest.parquet")
        made.rename(folder)
    return folder / "manifest.parquet"


def write_parquet(folder: Path, samples: int) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not folder.exists():
        made = folder.with_name(folder.name + ".part")
        made.mkdir(parents=True)
        of_image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        schema = pa.schema(
            [("image", of_image), ("label", pa.string()), ("path", pa.string()), ("size", pa.int64())]
        )
        for first in range(0, samples, 100_000):
            indices = range(first, min(samples, first + 100_000))
            labels = [f"class-{i % 1000:04d}" for i in indices]
            columns = [[{"bytes": b"x", "path": None}] * len(labels), labels]
            columns += [
                [f"{label}/{i:08d}.jpg" for label, i in zip(labels, indices, strict=True)],
                [1] * len(labels),
            ]
            arrays = [pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)]
            rows = pa.Table.from_arrays(arrays, schema=schema)
            pq.write_table(rows, made / f"train-{first:08d}.parquet", row_group_size=1000)
        made.rename(folder)
    return folder


MADE: dict[str, Callable[[Path, int], Path]] = {
    "webdataset": write_shards,
    "parquet": write_parquet,
    "parquet of paths": write_manifest,
}


def listing(arguments: argparse.Namespace) -> None:
    for name in arguments.sources or MADE:
        folder = arguments.work / f"list-{name.replace(' ', '-')}-{arguments.samples}"
        data = MADE[name](folder, arguments.samples)
        cache = arguments.work / "list-cache"
        shutil.rmtree(cache, ignore_errors=True)
        runs = [_listed(data, cache) for _ in range(2)]
        row = {"source": name, "samples": runs[0]["n"], "first_s": f"{runs[0]['s']:.1f}"}
        row |= {"first_cpu_s": f"{runs[0]['cpu']:.1f}", "again_cpu_s": f"{runs[1]['cpu']:.1f}"}
        row |= {"import_mb": f"{runs[0]['import']:.0f}"}
        row |= {"again_s": f"{runs[1]['s']:.1f}", "peak_mb": f"{max(run['mb'] for run in runs):.0f}"}
        print(row)
        append_row(arguments.out, LISTING, row | about(arguments))
        shutil.rmtree(folder)
        shutil.rmtree(cache, ignore_errors=True)


def _listed(data: Path, cache: Path) -> dict[str, float]:
    environment = os.environ | {"DEITKIT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LIST, str(data)], env=environment, capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


# Shuffling


def shuffle(arguments: argparse.Namespace) -> None:
    for measure, value, uniform, size in measures(arguments.images, arguments.epochs):
        row = {"images": arguments.images, "epochs": arguments.epochs, "measure": measure}
        row |= {"world": size, "value": f"{value:.4f}", "uniform": f"{uniform:.4f}"}
        print(row)
        known = {key: fact for key, fact in about(arguments).items() if key in SHUFFLE}
        append_row(arguments.out, SHUFFLE, row | known)


def measures(images: int, epochs: int, world: int = 4) -> Iterator[tuple[str, float, float, int]]:
    """Name, value of our epochs, and value of NumPy's permutations; `world`: ranks that share a batch."""
    from deitkit.data.sampler import plan_epoch

    planned = []
    for epoch in range(epochs):
        batches = plan_epoch(images, batch_size=256, repeats=1, seed=0, epoch=epoch)
        planned.append(np.concatenate([batch.indices for batch in batches]))
    rng = np.random.RandomState(1)
    drawn = [rng.permutation(images) for _ in range(epochs)]
    for name, measure in (
        ("mean distance of neighbours, in images", neighbours),
        ("Kolmogorov distance of places, first tenth of images", places),
        ("share of pairs of an epoch that meet again in the next batch", meet_again),
    ):
        yield name, measure(planned), measure(drawn), 1
    ranks = [order[rank::world] for order in planned for rank in range(world)]
    of_drawn = [order[rank::world] for order in drawn for rank in range(world)]
    yield "mean distance of neighbours, in images", neighbours(ranks), neighbours(of_drawn), world


def neighbours(orders: list[Any]) -> float:
    return float(np.mean([np.abs(np.diff(order)).mean() for order in orders]))


def places(orders: list[Any]) -> float:
    """How far the places of the first tenth of images are from uniform over the epoch."""
    found = []
    for order in orders:
        at = np.flatnonzero(order < len(order) // 10) / len(order)
        found.append(np.abs(at - np.arange(len(at)) / len(at)).max())
    return float(np.mean(found))


def meet_again(orders: list[Any], batch: int = 256) -> float:
    """Of the neighbours in one epoch, those that are in one batch of the next."""
    found = []
    for first, second in itertools.pairwise(orders):
        place = np.empty(len(second), np.int64)
        place[second] = np.arange(len(second)) // batch
        found.append((place[first[1:]] == place[first[:-1]]).mean())
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    what = parser.add_subparsers(required=True)
    of_speed, of_list, of_shuffle = (what.add_parser(name) for name in ("speed", "list", "shuffle"))
    of_speed.add_argument("--images", type=int, default=100_000)
    of_speed.add_argument("--rounds", type=int, default=7)
    of_speed.add_argument("--at-once", type=int, default=1000, help="images of a source in one round")
    of_speed.set_defaults(run=speed)
    of_list.add_argument("--samples", type=int, default=1_300_000)
    of_list.add_argument("--sources", nargs="*", choices=list(MADE))
    of_list.set_defaults(run=listing)
    of_shuffle.add_argument("--images", type=int, default=100_000)
    of_shuffle.add_argument("--epochs", type=int, default=20)
    of_shuffle.set_defaults(run=shuffle)
    for each in (of_speed, of_list, of_shuffle):
        each.add_argument("--work", type=Path, default=Path("work"), help="folder for what is made")
        each.add_argument("--out", type=Path, required=True, help="a CSV file that rows are added to")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
