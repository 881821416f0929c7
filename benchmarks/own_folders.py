"""Ten folders as people have them: does `deitkit train` get through, and is its verdict right?

    python benchmarks/own_folders.py SETS --out DIR [--cases flat heic ...] [--budget 2m]

SETS holds imagenette, cifar10, signdigits and elpv, each with train/ and val/ and one folder per class.
Every case is made from training images: few, uneven, nested, with broken files, as HEIC, as a table. The
command line trains on it; then every model of the run is measured on even classes of images from val/, many
more than the run had for its verdict. A verdict is right if no other model is more accurate there, beyond
chance, than the rule of docs/choosing.md allows for its speed; and if nothing can be learnt, if nothing is
recommended. Writes results/own-folders.md.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from deitkit.evaluation.comparison import paired_difference
from deitkit.evaluation.run_evaluation import evaluate_folder
from deitkit.evaluation.speed import describe_machine
from deitkit.report.verdict import POINTS_PER_DOUBLING
from deitkit.run_folder import read_results
from deitkit.run_schema import role_name

RESULTS = Path(__file__).parents[1] / "results" / "own-folders.md"
TEST_IMAGES = 100  # per class


@dataclass(frozen=True)
class Source:
    """Images of one collection, in a random order that is the same each time."""

    root: Path

    def classes(self) -> list[str]:
        return sorted(p.name for p in (self.root / "train").iterdir() if p.is_dir())

    def images(self, part: str, label: str) -> list[Path]:
        paths = sorted((self.root / part / label).iterdir())
        return [paths[i] for i in np.random.RandomState(0).permutation(len(paths))]


@dataclass(frozen=True)
class Case:
    """A folder to make. names: what the classes are called in it. nothing: whether nothing can be learnt."""

    name: str
    source: str
    about: str
    make: Callable[[Source, Path], dict[str, str]]  # returns the collection's class -> the folder's class
    nothing: bool = False


CASES: list[Case] = []


def case(source: str, about: str, *, nothing: bool = False) -> Callable:  # type: ignore[type-arg]
    """Adds a case, as the decorator of the function that makes it."""

    def add(make: Callable[[Source, Path], dict[str, str]]) -> Callable[[Source, Path], dict[str, str]]:
        CASES.append(Case(make.__name__, source, about, make, nothing))
        return make

    return add


def put(paths: list[Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        shutil.copyfile(path, folder / path.name)


@case("imagenette", "300 photographs, 10 classes, one folder each")
def flat(source: Source, folder: Path) -> dict[str, str]:
    for label in source.classes():
        put(source.images("train", label)[:30], folder / label)
    return {label: label for label in source.classes()}


@case("signdigits", "200 hands, 5 classes with Chinese names, in sub-folders of three people")
def nested(source: Source, folder: Path) -> dict[str, str]:
    names = dict(zip(source.classes()[:5], "零一二三四", strict=True))
    for label, name in names.items():
        images = source.images("train", label)[:40]
        for i in range(3):
            put(images[i::3], folder / name / f"person {i + 1}")
    return names


@case("elpv", "300 good and 12 defective solar cells")
def uneven(source: Source, folder: Path) -> dict[str, str]:
    good, bad = two_ends(source)
    put(source.images("train", good)[:300], folder / "good")
    put(source.images("train", bad)[:12], folder / "defective")
    return {good: "good", bad: "defective"}


def two_ends(source: Source) -> tuple[str, str]:
    """The classes of ELPV: functional and defective."""
    defective, functional = source.classes()
    return functional, defective


@case("cifar10", "18 tiny images of cats and dogs")
def eighteen(source: Source, folder: Path) -> dict[str, str]:
    cat, dog = source.classes()[3], source.classes()[5]
    put(source.images("train", cat)[:9], folder / "cat")
    put(source.images("train", dog)[:9], folder / "dog")
    return {cat: "cat", dog: "dog"}


@case("imagenette", "78 photographs of 3 classes, 3 of them broken, and notes between them")
def broken(source: Source, folder: Path) -> dict[str, str]:
    labels = source.classes()[:3]
    for label in labels:
        images = source.images("train", label)[:26]
        put(images, folder / label)
        spoilt = folder / label / images[0].name
        spoilt.write_bytes(spoilt.read_bytes()[:200])
        (folder / label / "notes.txt").write_text("from the first day")
    return {label: label for label in labels}


@case("imagenette", "120 photographs of 4 classes, half of them HEIC as an iPhone writes")
def heic(source: Source, folder: Path) -> dict[str, str]:
    import pillow_heif

    pillow_heif.register_heif_opener()
    labels = source.classes()[4:8]
    for label in labels:
        images = source.images("train", label)[:30]
        put(images[::2], folder / label)
        for path in images[1::2]:
            Image.open(path).convert("RGB").save(folder / label / f"{path.stem}.HEIC", quality=90)
    return {label: label for label in labels}


@case("cifar10", "400 images in one folder, and a table from a spreadsheet: semicolons, a byte order mark")
def table(source: Source, folder: Path) -> dict[str, str]:
    rows = ["filename;label"]
    for label in source.classes()[:4]:
        for path in source.images("train", label)[:100]:
            name = f"{label} {path.name}"  # the classes number their images alike
            (folder / "all").mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / "all" / name)
            rows.append(f"all/{name};{label}")
    (folder / "labels.csv").write_text("\r\n".join(rows) + "\r\n", encoding="utf-8-sig")
    return {label: label for label in source.classes()[:4]}


@case("elpv", "400 solar cells of 2 classes, with train/ and val/")
def parts(source: Source, folder: Path) -> dict[str, str]:
    good, bad = two_ends(source)
    for label, name in ((good, "good"), (bad, "defective")):
        images = source.images("train", label)[:200]
        put(images[:150], folder / "train" / name)
        put(images[150:], folder / "val" / name)
    return {good: "good", bad: "defective"}


@case("signdigits", "300 hands, 10 classes, a third of the files twice under another name")
def duplicates(source: Source, folder: Path) -> dict[str, str]:
    for label in source.classes():
        images = source.images("train", label)[:30]
        put(images, folder / label)
        for path in images[::3]:
            shutil.copyfile(path, folder / label / f"copy of {path.name}")
    return {label: label for label in source.classes()}


@case("imagenette", "200 photographs whose labels were drawn at random", nothing=True)
def random_labels(source: Source, folder: Path) -> dict[str, str]:
    labels, rng = source.classes()[:2], np.random.RandomState(0)
    for label in labels:
        for path in source.images("train", label)[:100]:
            put([path], folder / labels[rng.randint(2)])
    return {label: label for label in labels}


def write_test(source: Source, names: dict[str, str], folder: Path) -> None:
    """The same number of images of each class from val/."""
    images = {label: source.images("val", label) for label in names}
    count = min(TEST_IMAGES, *map(len, images.values()))
    for label, name in names.items():
        put(images[label][:count], folder / name)


@dataclass(frozen=True)
class Tested:
    """A model of a run on the test images."""

    role: str
    right: torch.Tensor  # (n,) yes or no
    images_per_s: float

    @property
    def top1(self) -> float:
        return 100 * float(self.right.double().mean())


def tested(run: Path, test: Path) -> dict[str, Tested]:
    """Every model of a run, measured on the images of `test`."""
    found = {}
    for role, result in read_results(run).models.items():
        rows = run / f"test-{role}.csv"
        evaluate_folder(run, test, model=role, csv_file=rows)
        with rows.open(encoding="utf-8", newline="") as file:
            right = [row["label"] == row["prediction"] for row in csv.DictReader(file)]
        found[role] = Tested(role, torch.tensor(right), result.images_per_s)
    return found


def objection(recommended: Tested, models: dict[str, Tested]) -> str:
    """The model that should have been recommended instead, by the test images; empty if there is none."""
    for other in models.values():
        doublings = math.log2(recommended.images_per_s / other.images_per_s)
        allowed = max(0.0, POINTS_PER_DOUBLING["balanced"] * doublings)
        _, (low, _) = paired_difference(other.right, recommended.right)
        if other is not recommended and low > allowed:
            return f"{role_name(other.role)} has {other.top1:.1f} %"
    return ""


def rows_of(one: Case, options: argparse.Namespace) -> Iterator[str]:
    """Makes a folder, trains on it, and yields its row of the table."""
    work = options.out / one.name
    shutil.rmtree(work, ignore_errors=True)
    source = Source(options.sets / one.source)
    names = one.make(source, work / "images")
    write_test(source, names, work / "test")
    started = time.monotonic()
    command = [sys.executable, "-m", "deitkit", "train", str(work / "images"), "--out", str(work / "run")]
    done = subprocess.run([*command, f"--budget={options.budget}"], stderr=subprocess.PIPE, text=True)
    seconds = time.monotonic() - started
    (work / "stderr.txt").write_text(done.stderr)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1].replace(str(options.out), "DIR")
        yield f"| {one.about} | failed: {said} | | | no |"
        return
    results, models = read_results(work / "run"), tested(work / "run", work / "test")
    scores = ", ".join(f"{role_name(m.role)} {m.top1:.1f}" for m in models.values())
    if results.recommended is None:
        right, said = one.nothing, "none"
        why = "" if right else "something can be learnt"
    else:
        said = role_name(results.recommended)
        why = "nothing can be learnt" if one.nothing else objection(models[results.recommended], models)
        right = not why
    yield f"| {one.about} | {said} | {scores} | {seconds:.0f} | {'yes' if right else f'no: {why}'} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("sets", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", choices=[one.name for one in CASES])
    parser.add_argument("--budget", default="2m")
    options = parser.parse_args()
    chosen = [one for one in CASES if not options.cases or one.name in options.cases]
    lines = [
        "# Ten folders as people have them",
        "",
        f"`python benchmarks/own_folders.py SETS --out DIR --budget {options.budget}`; {describe_machine()}; "
        f"{datetime.date.today().isoformat()}.",
        "",
        "Top-1 in % on even classes of other images, up to 100 per class. *Right*: see the script.",
        "",
        "| folder | recommended | measured on other images | seconds | right |",
        "|---|---|---|---|---|",
    ]
    for one in chosen:
        for row in rows_of(one, options):
            print(row, flush=True)
            lines.append(row)
    RESULTS.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
