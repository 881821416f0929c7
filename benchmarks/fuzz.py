"""Feeds damaged files to everything that reads files: each is read, or refused with one sentence.

    python benchmarks/fuzz.py --minutes 60 --out results/reliability/fuzz.json
    python benchmarks/fuzz.py --targets onnx --first 431 --cases 1     # one case again

Files are made from a seed and a number and then damaged: bytes changed, cut, repeated and removed, values of
JSON replaced. Readers of JSON and CSV also get documents that hypothesis makes up. A process of its own reads
them and says which case it is at, so that a crash, a hang or too much memory is found with its case.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # what damages files belongs to the tests

SECONDS = 20.0  # of processor time for a case; the slowest, OpenVINO's of a teacher, take one
MEMORY = 1 << 30  # of all cases of a process together, beyond what it needs before
SILENCE = 120.0  # seconds without a word, after which a case hangs
LONGEST_SENTENCE = 1000


@dataclass(frozen=True)
class Target:
    """Files of one kind and what reads them.

    make: writes whole files into a folder and returns those to damage. use: reads the folder.
    """

    make: Callable[[Path], list[Path]]
    use: Callable[[Path], object]


def _copied(source: Path, folder: Path, *names: str) -> list[Path]:
    shutil.copytree(source, folder, dirs_exist_ok=True)
    return [folder / name for name in names]


def _run(folder: Path) -> list[Path]:
    import gzip

    from tests.test_run_folder import READERS, V01, complete

    _copied(V01, folder)
    complete(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(gzip.decompress(weights.with_name("model.safetensors.gz").read_bytes()))
    return [folder / name for name in READERS]


def _read_run(folder: Path) -> None:
    from tests.test_run_folder import READERS

    for reader in dict.fromkeys(READERS.values()):
        refused(lambda reader=reader: reader(folder))


def _run_as_teacher(folder: Path) -> list[Path]:
    return [path for path in _run(folder) if path.name in ("config.json", "model.safetensors")]


def _open_teacher(spec: str) -> None:
    from deitkit.preprocessing import InputSize
    from deitkit.teachers.spec import open_member, parse

    open_member(parse(spec)[0], InputSize())


def _teacher(folder: Path) -> list[Path]:
    """An ensemble of a probed and a fine-tuned member."""
    from tests.teachers.models import timm_file
    from tests.teachers.test_fit import fit

    from deitkit.teachers.saved import save_teacher

    weights = folder.with_name("pretrained")
    weights.mkdir()
    spec = f"{timm_file(weights)},{timm_file(weights, 'test_vit')}"
    save_teacher(folder, fit(spec, fit="finetune"))
    return [folder / "teacher.json", folder / "teacher.safetensors"]


def _read_teacher(folder: Path) -> None:
    import torch

    from deitkit.teachers.saved import read_card, read_teacher

    refused(lambda: read_card(folder))
    read_teacher(folder, device=torch.device("cpu"), backend="pytorch")


def _soft_labels(folder: Path) -> list[Path]:
    from tests.soft_labels.test_damaged import V01

    return _copied(V01, folder, "manifest.json", "epoch-00000-000.safetensors", "views.safetensors")


def _read_soft_labels(folder: Path) -> None:
    import torch

    from deitkit.soft_labels.replay import refuse_other_views
    from deitkit.soft_labels.store import open_soft_labels

    class Made(Exception):
        pass

    def make(batch: object) -> Any:
        raise Made

    store = open_soft_labels(folder)
    store.verify(store.epochs(), lambda n: None)
    if store.epochs():
        store.outputs(0, 0, torch.device("cpu"))
    try:
        refuse_other_views(store, make)
    except Made:
        return


def _checkpoint_state() -> Any:
    import torch

    from deitkit.config import OptimConfig
    from deitkit.training.optim import OPTIMIZERS, parameter_groups
    from deitkit.training.state import EMA, TrainingState

    model = torch.nn.Linear(3, 2)
    return TrainingState(
        model, None, EMA(model, 0.9), OPTIMIZERS["adamw"](parameter_groups([model], 0.05), OptimConfig())
    )


def _checkpoints(folder: Path) -> list[Path]:
    from deitkit.training.state import save_checkpoint

    return [save_checkpoint(folder, _checkpoint_state(), {"epochs": 3})]


def _read_checkpoint(folder: Path) -> None:
    from deitkit.training.state import load_checkpoint

    load_checkpoint(folder, _checkpoint_state(), {"epochs": 3})


def _images(folder: Path) -> Any:
    from tests.conftest import write_images

    from deitkit.data.folder import scan

    if not folder.exists():
        write_images(folder, count=4)
        for path in folder.rglob("*.png"):
            os.utime(path, (0, 0))
    return scan(folder, folder)


def _open_cache(folder: Path) -> Any:
    from deitkit.data.cache import Decoder, open_store

    images = _images(folder / "images")
    decoder = Decoder((8, 8), "resize")
    store, _ = open_store(images, decoder, cache_dir=folder / "cache", limit_bytes=10**9, workers=1)
    return store.fetch(range(len(images)))


def _cache(folder: Path) -> list[Path]:
    _open_cache(folder)
    return sorted((folder / "cache").iterdir())


def _read_cache(folder: Path) -> None:
    """Pixels are the same, whatever happened to the cache."""
    found = _open_cache(folder)
    shutil.rmtree(folder / "cache")
    assert found.equal(_open_cache(folder)), "other pixels"


def _table(folder: Path) -> list[Path]:
    from tests.conftest import write_labelled

    return [write_labelled(folder) / "labels.csv"]


def _read_table(folder: Path) -> None:
    from deitkit.data.table import read_table

    read_table(folder)


def _shards(folder: Path) -> list[Path]:
    from tests.conftest import write_images

    from deitkit.data.packing import pack

    images = write_images(folder.with_name("packed-images"), count=4)
    pack(images, folder, images_per_shard=5)
    return sorted(folder.glob("*.tar"))


def _parquet(folder: Path) -> list[Path]:
    from tests.conftest import write_images

    from deitkit.data.packing import pack

    images = write_images(folder.with_name("packed-images"), count=4)
    pack(images, folder, to="parquet", images_per_shard=5)
    return sorted(folder.glob("*.parquet"))


def _arrow(folder: Path) -> list[Path]:
    """A data set as `datasets` saves it, of one file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = folder.with_name("as-parquet")
    _parquet(made)
    rows = pa.concat_tables(pq.read_table(path) for path in sorted(made.glob("*.parquet")))
    folder.mkdir()
    for name in ("state.json", "dataset_info.json"):
        (folder / name).write_text("{}")
    with pa.OSFile(str(folder / "data.arrow"), "wb") as file, pa.ipc.new_stream(file, rows.schema) as writer:
        writer.write_table(rows)
    return [folder / "data.arrow"]


def _workbook(folder: Path) -> list[Path]:
    import openpyxl
    from tests.conftest import write_images

    book, images = openpyxl.Workbook(), write_images(folder, count=4)
    book.active.append(["path", "label", "split"])
    for k, path in enumerate(sorted(images.rglob("*.png"))):
        book.active.append([path.relative_to(images).as_posix(), path.parent.name, ("train", "val")[k % 2]])
    book.save(folder / "list.xlsx")
    return [folder / "list.xlsx"]


def _read_source(data: Path) -> None:
    """Lists the images, and decodes each or learns why it cannot be."""
    from deitkit.data.decode import open_rgb
    from deitkit.data.table import read_table

    images = read_table(data).images
    for i in range(len(images)):
        refused(lambda i=i: open_rgb(images.file(i)))


def _weights(folder: Path) -> list[Path]:
    from deitkit.io import write_json, write_tensors
    from deitkit.models.deit import DeiT

    model = DeiT(num_classes=2, image_size=(16, 16), patch_size=(8, 8), embed_dim=16, depth=1, num_heads=2)
    folder.mkdir(exist_ok=True)
    write_tensors(folder / "model.safetensors", model.state_dict())
    hub = {"model_type": "vit", "image_size": 16, "patch_size": 8, "hidden_size": 16}
    hub |= {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    write_json(folder / "config.json", hub | {"id2label": {"0": "cat", "1": "dog"}})
    return [folder / "model.safetensors", folder / "config.json"]


def _read_weights(folder: Path) -> None:
    from deitkit.weights.sources import read

    read(folder)


def _onnx(folder: Path) -> list[Path]:
    from tests.teachers.models import onnx_file

    folder.mkdir(exist_ok=True)
    return [onnx_file(folder / "a.onnx")]


TARGETS: dict[str, Target] = {
    "run folder": Target(_run, _read_run),
    "run as a teacher": Target(_run_as_teacher, lambda folder: _open_teacher(f"run:{folder}")),
    "teacher folder": Target(_teacher, _read_teacher),
    "soft labels": Target(_soft_labels, _read_soft_labels),
    "checkpoint": Target(_checkpoints, _read_checkpoint),
    "cache": Target(_cache, _read_cache),
    "labels.csv": Target(_table, _read_table),
    "shards": Target(_shards, _read_source),
    "parquet": Target(_parquet, _read_source),
    "arrow": Target(_arrow, _read_source),
    "workbook": Target(_workbook, lambda folder: _read_source(folder / "list.xlsx")),
    "weights": Target(_weights, _read_weights),
    "onnx": Target(_onnx, lambda folder: _open_teacher(f"onnx:{folder / 'a.onnx'}")),
}
IMAGES = "images"
INVENTED = "invented documents"


# One case


def refused(read: Callable[[], object]) -> bool:
    """Whether a file is refused. Raises AssertionError unless that is done in one sentence."""
    from deitkit.errors import DeitkitError

    try:
        read()
    except DeitkitError as error:
        said = str(error)
        assert said and "\n" not in said and len(said) < LONGEST_SENTENCE, f"no sentence: {said[:300]!r}"
        return True
    return False


def damaged_case(target: Target, folder: Path, files: list[Path], seed: str) -> bool:
    """Damages one or two of the files, reads them, and restores them. Whether they were refused."""
    from tests.damage import damage, damaged_bytes

    rng = random.Random(seed)
    kept = shutil.copytree(folder, folder.with_name("kept"), dirs_exist_ok=True)
    try:
        for path in rng.sample(files, min(len(files), rng.randint(1, 2))):
            if rng.random() < 0.2:  # anywhere, behind a header too
                path.write_bytes(damaged_bytes(path.read_bytes(), rng))
            else:
                damage(path, rng)
        return refused(lambda: target.use(folder))
    finally:
        shutil.rmtree(folder)
        os.rename(kept, folder)


def read_cases(name: str, seed: int, first: int, count: int) -> None:
    """Reads cases of a target. Prints a JSON line before and after each."""
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "files"
        target = TARGETS[name]
        files = target.make(folder)
        target.use(folder)  # whole, it is read
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for case in range(first, first + count):
            print(json.dumps({"case": case}), flush=True)
            began, problem, was_refused = time.process_time(), None, False
            try:
                was_refused = damaged_case(target, folder, files, f"{seed} {name} {case}")
            except Exception:
                problem = traceback.format_exc()[-1500:]
            seconds = time.process_time() - began
            memory = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
            if seconds > SECONDS or memory > MEMORY:
                problem = problem or f"takes {seconds:.1f} s and {memory / 2**20:.0f} MiB"
            print(json.dumps({"refused": was_refused, "problem": problem}), flush=True)


def read_invented(seed: int, first: int, count: int) -> None:
    """Readers of JSON and CSV with `count` documents of hypothesis each; `first` makes others."""
    import hypothesis
    from hypothesis import strategies as st

    logging.disable(logging.CRITICAL)
    scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    values = st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=12,
    )
    cells = st.text(st.sampled_from('ab,;|"\n\r\t\\0é\ud7ff train'), max_size=12) | st.text(max_size=12)
    rows = st.lists(st.lists(cells, max_size=5).map(",".join), max_size=8)
    settings = hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
    )
    with tempfile.TemporaryDirectory() as scratch:
        for number, (label, target_name, path_of) in enumerate(_documents()):
            target, folder = TARGETS[target_name], Path(scratch) / f"{number}"
            target.make(folder)
            path = path_of(folder)
            whole = path.read_text(encoding="utf-8")
            print(json.dumps({"case": f"{label} {first}"}), flush=True)
            strategy = _texts(path, whole, values, rows)

            check = _check_of(target, folder, path)
            problem = None
            try:
                hypothesis.seed(seed * 1000 + first)(hypothesis.given(strategy)(settings(check)))()
            except Exception:
                problem = traceback.format_exc()[-2500:]
            path.write_text(whole, encoding="utf-8")
            print(json.dumps({"refused": True, "problem": problem, "count": count}), flush=True)


def _check_of(target: Target, folder: Path, path: Path) -> Callable[[str], None]:
    def check(text: str) -> None:
        path.write_text(text, encoding="utf-8", errors="surrogatepass", newline="")
        refused(lambda: target.use(folder))

    return check


def _documents() -> Iterator[tuple[str, str, Callable[[Path], Path]]]:
    """Each JSON and CSV file: a label, the target that reads it, where it lies."""

    def lies(name: str) -> Callable[[Path], Path]:
        return lambda folder: folder / name

    for name in ("config.json", "settings.json", "plan.json", "split.json", "skipped.json"):
        yield name, "run folder", lies(name)
    for name in ("metrics.jsonl", "predictions.csv", "results.json"):
        yield name, "run folder", lies(name)
    yield "teacher.json", "teacher folder", lies("teacher.json")
    yield "manifest.json", "soft labels", lies("manifest.json")
    yield "labels.csv", "labels.csv", lies("labels.csv")
    yield "config.json of a hub", "weights", lies("config.json")
    yield "a cache's note", "cache", lambda folder: next((folder / "cache").glob("*.json"))


def _texts(path: Path, whole: str, values: Any, rows: Any) -> Any:
    """Documents that resemble `whole`: an entry replaced, or everything."""
    from hypothesis import strategies as st

    if path.suffix == ".csv":
        head, *body = whole.splitlines()
        shuffled = st.permutations(head.split(",")).map(",".join)
        heads = st.just(head) | shuffled | rows.map(lambda made: made[0] if made else "")
        kept = st.integers(0, len(body)).map(lambda count: body[:count])
        return st.builds(lambda h, old, new: "\n".join([h, *old, *new]) + "\n", heads, kept, rows)
    if path.suffix == ".jsonl":
        lines = [json.loads(line) for line in whole.splitlines()]
        documents = st.lists(st.sampled_from(lines).flatmap(lambda one: _changed(one, values)), max_size=4)
        return documents.map(lambda made: "".join(json.dumps(one) + "\n" for one in made))
    return _changed(json.loads(whole), values).map(json.dumps)


def _changed(document: Any, values: Any) -> Any:
    """Documents of JSON with a value at some place replaced by one that hypothesis makes up."""
    from hypothesis import strategies as st

    def replace(at: int, value: Any) -> Any:
        places = list(_places(document))
        where = places[at % len(places)]
        return _with(document, where, value)

    return st.builds(replace, st.integers(0, 10_000), values)


def _places(document: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    if isinstance(document, dict | list):
        for key in document if isinstance(document, dict) else range(len(document)):
            yield from _places(document[key], (*at, key))


def _with(document: Any, where: tuple[Any, ...], value: Any) -> Any:
    if not where:
        return value
    changed = document.copy()
    changed[where[0]] = _with(document[where[0]], where[1:], value)
    return changed


# Many cases


@dataclass
class Tally:
    """What happened to the cases of one target."""

    cases: int = 0
    refused: int = 0
    seconds: float = 0.0
    findings: list[dict[str, Any]] = field(default_factory=list)


def run_batch(name: str, seed: int, first: int, count: int, tally: Tally) -> None:
    """Cases in a process of their own, and what it says about them."""
    began = time.monotonic()
    command = [sys.executable, __file__, "--worker", name, str(seed), str(first), str(count)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    case: Any = "before the first"
    errors = process.stderr
    try:
        while True:
            ready, _, _ = select.select([process.stdout], [], [], SILENCE)
            if not ready:
                tally.findings.append({"case": case, "problem": f"hangs for {SILENCE:.0f} s"})
                return
            line = process.stdout.readline()
            if not line:
                break
            if not line.startswith('{"'):
                continue  # a library's own words
            said = json.loads(line)
            if "case" in said:
                case = said["case"]
                continue
            tally.cases += said.get("count", 1)
            tally.refused += bool(said["refused"])
            if said["problem"]:
                problem = said["problem"].replace(f"{ROOT}/", "").replace(f"{sys.prefix}/", "")
                tally.findings.append({"case": case, "problem": problem})
        if process.wait() != 0:
            problem = f"exit status {process.returncode} in or after this case: {errors.read()[-1500:]}"
            tally.findings.append({"case": case, "problem": problem})
    finally:
        process.kill()
        process.wait()
        tally.seconds += time.monotonic() - began


def run_images(seed: int, first: int, count: int, tally: Tally) -> None:
    """Mutated image files of every format."""
    from tests.data.test_hostile import run_cases

    began = time.monotonic()
    try:
        decoded = run_cases(seed, first, count)
        tally.cases += len(decoded)
        tally.refused += sum(ways == 0 for ways in decoded)
    except BaseException as error:  # a failed test is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        tally.findings.append({"case": first, "problem": str(error)[:2000]})
    tally.seconds += time.monotonic() - began


def fuzz(arguments: argparse.Namespace) -> dict[str, Tally]:
    names = arguments.targets or [IMAGES, *TARGETS, INVENTED]
    tallies = {name: Tally() for name in names}
    next_case = dict.fromkeys(names, arguments.first)
    end = time.monotonic() + 60 * arguments.minutes
    while time.monotonic() < end:
        for name in names:
            count = arguments.cases or {IMAGES: 1500, INVENTED: 40, "onnx": 60}.get(name, 100)
            if name == IMAGES:
                run_images(arguments.seed, next_case[name], count, tallies[name])
            else:
                run_batch(name, arguments.seed, next_case[name], count, tallies[name])
            next_case[name] += count
            if arguments.out is not None:
                save(arguments, tallies)
            if time.monotonic() > end:
                break
        if arguments.cases:
            break
    return tallies


def save(arguments: argparse.Namespace, tallies: dict[str, Tally]) -> None:
    from provenance import provenance

    content = {
        "benchmark": "fuzz",
        **provenance(),
        "seed": arguments.seed,
        "limits": {"seconds": SECONDS, "memory": MEMORY, "silence": SILENCE},
        "targets": {name: vars(tally) for name, tally in tallies.items()},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        name, *numbers = sys.argv[2:]
        seed, first, count = map(int, numbers)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        if name == INVENTED:
            read_invented(seed, first, count)
        else:
            read_cases(name, seed, first, count)
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--targets", nargs="*", choices=[IMAGES, *TARGETS, INVENTED])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, help="one batch of so many cases a target")
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    tallies = fuzz(arguments)
    for name, tally in tallies.items():
        print(f"{name}: {tally.cases} cases, {tally.refused} refused, {len(tally.findings)} findings")
        for finding in tally.findings:
            print(json.dumps(finding))
    raise SystemExit(any(tally.findings for tally in tallies.values()))


if __name__ == "__main__":
    main()
