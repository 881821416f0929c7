"""Images in shards, tables and data sets: read as the folder they were made of, or refused."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import deitkit
from deitkit.cli import main
from deitkit.config import DataConfig
from deitkit.data import source as sources
from deitkit.data.corrections import read_corrections
from deitkit.data.decode import open_rgb
from deitkit.data.image_file import UnreadableImage
from deitkit.data.near_duplicates import duplicates_of
from deitkit.data.packing import pack
from deitkit.data.sources import arrow_tables, webdataset_shards
from deitkit.data.splits import Splits, load_splits
from deitkit.data.table import image_root, is_source, read_table, read_unlabeled
from deitkit.data.unlabeled import find_unlabeled
from deitkit.errors import DataError, DeitkitError, DependencyError, Interrupted, ResumeError
from deitkit.training import run as job
from deitkit.training.trainer import Trainer

from ..conftest import write_images, write_labelled

SETTINGS = {
    "teacher.spec": "none",
    "student.image_size": 16,
    "student.patch_size": 8,
    "train.batch_size": 8,
    "train.epochs": 2,
    "train.device": "cpu",
    "data.workers": 1,
}


def splits_of(data: Path | str, **settings: object) -> Splits:
    return load_splits(Path(data), DataConfig(**settings))


def train(data: Path | str, out: Path, **options: object) -> job.Run:
    return job.train(
        data, out, **{key.replace(".", "__"): value for key, value in SETTINGS.items()}, **options
    )


def png(value: int = 0) -> bytes:
    made = io.BytesIO()
    Image.fromarray(np.full((10, 10, 3), value, np.uint8)).save(made, "PNG")
    return made.getvalue()


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


# Each source of the same images


def as_shards(images: Path, out: Path) -> str:
    pack(images, out, images_per_shard=7)
    return str(out)


def as_pattern(images: Path, out: Path) -> str:
    pack(images, out, images_per_shard=13)
    return str(out / "shard-{000000..000001}.tar")


def as_url(images: Path, out: Path) -> str:
    fsspec = pytest.importorskip("fsspec")
    pack(images, out, images_per_shard=13)
    memory = fsspec.filesystem("memory")
    for file in out.glob("*.tar"):
        memory.pipe(f"/{out.name}/{file.name}", file.read_bytes())
    return f"memory://{out.name}/shard-{{000000..000001}}.tar"


def as_folders_in_a_shard(images: Path, out: Path) -> str:
    out.mkdir()
    files = sorted(images.rglob("*.png"), key=lambda path: (path.parent.name, str(path)))
    write_tar(out / "a.tar", [(path.relative_to(images).as_posix(), path.read_bytes()) for path in files])
    return str(out / "a.tar")


def as_parquet(images: Path, out: Path) -> str:
    pytest.importorskip("pyarrow")
    pack(images, out, to="parquet", images_per_shard=7)
    return str(out)


def as_saved_dataset(images: Path, out: Path) -> str:
    datasets = pytest.importorskip("datasets")
    made = as_parquet(images, out.with_name(out.name + "-parquet"))
    found = datasets.load_dataset("parquet", data_files=f"{made}/*.parquet", cache_dir=str(out / "cache"))
    found["train"].save_to_disk(out / "saved")
    return str(out / "saved")


def as_hub_dataset(images: Path, out: Path) -> str:
    pytest.importorskip("datasets")
    made = Path(as_parquet(images, out.with_name(out.name + "-parquet")))
    out.mkdir()
    for file in made.glob("*.parquet"):
        shutil.copy(file, out / file.name.replace("shard", "train"))
    return f"hf:{out}"


def rows_of(images: Path) -> list[tuple[str, str]]:
    everything = splits_of(images).everything
    order = sorted(range(len(everything)), key=lambda i: (everything.labels[i], everything.paths[i]))
    return [(everything.paths[i], everything.label_text(i)) for i in order]


def as_manifest(images: Path, out: Path) -> str:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    copied = shutil.copytree(images, out)
    paths, labels = zip(*rows_of(images), strict=True)
    pq.write_table(pa.table({"filename": paths, "class": labels}), copied / "list.parquet")
    return str(copied / "list.parquet")


def as_workbook(images: Path, out: Path) -> str:
    openpyxl = pytest.importorskip("openpyxl")
    copied, book = shutil.copytree(images, out), openpyxl.Workbook()
    for row in [("Image", "Label"), *rows_of(images)]:
        book.active.append(row)
    book.save(copied / "list.xlsx")
    return str(copied / "list.xlsx")


ALL = [
    as_shards,
    as_pattern,
    as_url,
    as_folders_in_a_shard,
    as_parquet,
    as_saved_dataset,
    as_hub_dataset,
    as_manifest,
    as_workbook,
]
KEEPS_NAMES = [make for make in ALL if make is not as_folders_in_a_shard]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder, and the run trained on it."""
    base = tmp_path_factory.mktemp("sources")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEITKIT_CACHE", str(base / "cache"))
        images = write_images(base / "images")
        return images, train(images, base / "run").folder


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """Data sets are kept in a folder of the test, and nothing is looked up on the hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if importlib.util.find_spec("datasets") is not None:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("make", [make for make in ALL if make is not as_pattern])  # as_url has one too
def test_a_run_on_any_source_is_the_folders(whole, tmp_path, make, capsys):
    images, run = whole
    data = make(images, tmp_path / "made")
    assert is_source(Path(data))
    ended = train(data, tmp_path / "run").folder
    assert (ended / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()

    def answers(command: list[str]) -> object:
        with pytest.raises(SystemExit) as stopped:
            main([*command, "--device=cpu", "--json"])
        assert stopped.value.code == 0
        return json.loads(capsys.readouterr().out)

    capsys.readouterr()
    ours, theirs = answers(["eval", str(ended), data]), answers(["eval", str(run), str(images)])
    kept = ("top1", "loss", "per_class", "confusion", "notes")
    assert {k: ours[k] for k in kept} == {k: theirs[k] for k in kept}
    assert sum(row["images"] for row in ours["per_class"]) == 6  # those of training are left out

    def probabilities(of: Path, asked: str) -> list[str]:
        predictions = deitkit.load(of, "cpu", model="student", backend="pytorch").predict(asked)
        return sorted(json.dumps(each.probabilities, sort_keys=True) for each in predictions)

    assert (
        probabilities(ended, data) == probabilities(run, str(images))
        and len(read_unlabeled(Path(data))) == 24
    )


@pytest.mark.parametrize("make", [as_shards, as_parquet])
def test_a_run_resumes_on_the_same_images_only(whole, tmp_path, monkeypatch, make):
    images, run = whole
    data = Path(make(images, tmp_path / "made"))

    def stop_after_first(self: Trainer, epoch: int, *rest: object) -> None:
        end(self, epoch, *rest)
        raise Interrupted

    end = Trainer._end_epoch
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_end_epoch", stop_after_first)
        with pytest.raises(Interrupted):
            train(data, tmp_path / "stopped")
    shutil.copytree(tmp_path / "stopped", tmp_path / "other")
    resumed = train(data, tmp_path / "stopped", resume=True).folder
    assert (resumed / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    changed = write_images(tmp_path / "images")
    Image.new("RGB", (99, 99), "red").save(changed / "cat" / "3.png")
    with pytest.raises(ResumeError, match="its images or classes have changed"):
        train(make(changed, tmp_path / "changed"), tmp_path / "other", resume=True)


@pytest.mark.parametrize("make", KEEPS_NAMES)
def test_names_labels_and_bytes_are_those_of_the_folder(whole, tmp_path, make):
    expected = splits_of(whole[0])
    found = splits_of(make(whole[0], tmp_path / "made"))
    for name in ("train", "val"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.paths == theirs.paths and ours.fingerprint(times=False) == theirs.fingerprint(times=False)
        pairs = zip(map(ours.file, range(len(ours))), map(theirs.file, range(len(theirs))), strict=True)
        assert all(open_rgb(a).tobytes() == open_rgb(b).tobytes() for a, b in pairs)


def test_given_splits_are_kept(tmp_path):
    pytest.importorskip("pyarrow")
    for part in ("train", "val", "test"):
        write_images(tmp_path / "images" / part, count=3)
    expected = splits_of(tmp_path / "images")
    for to in ("webdataset", "parquet"):
        pack(tmp_path / "images", tmp_path / to, to=to)
        found = splits_of(tmp_path / to)
        assert found.test is not None and found.test.paths == expected.test.paths
        assert (found.train.paths, found.val.paths) == (expected.train.paths, expected.val.paths)
    shutil.rmtree(tmp_path / "images" / "val")
    pack(tmp_path / "images", tmp_path / "without")
    found, expected = splits_of(tmp_path / "without"), splits_of(tmp_path / "images")
    assert found.val.paths == expected.val.paths and found.test.paths == expected.test.paths


def test_several_labels_and_groups_are_kept(tmp_path):
    pytest.importorskip("pyarrow")
    table = write_labelled(tmp_path / "images") / "labels.csv"
    lines = table.read_text().splitlines()
    grouped = [f"{line},{'patient' if i == 0 else i // 6}" for i, line in enumerate(lines)]
    table.write_text("\n".join(grouped) + "\n")
    expected = splits_of(table, group="patient")
    for to in ("webdataset", "parquet"):
        pack(table, tmp_path / to, to=to, group="patient")
        found = splits_of(tmp_path / to, group="patient")
        assert found.val.paths == expected.val.paths and found.train.task == "multilabel"
        assert (found.train.labels == expected.train.labels).all()
        with pytest.raises(DataError, match="'doctor'"):
            splits_of(tmp_path / to, group="doctor")


def test_shards_as_webdataset_and_others_write_them(tmp_path):
    members = []
    for i in range(8):
        members += [(f"{i:03d}.jpg", png(20 * i)), (f"{i:03d}.cls", str(i % 2).encode())]
        members += [(f"{i:03d}.txt", b"a caption")]
    shard = write_tar(tmp_path / "train-0.tar", members)
    shutil.copy(shard, tmp_path / "val-0.tar")
    found = splits_of(tmp_path)
    assert found.train.classes == ("0", "1") and found.train.paths[0] == "train-0/000.jpg"
    assert len(found.train) == len(found.val) == 8
    assert splits_of(tmp_path / "{train,val}-0.tar").val.paths == found.val.paths


def test_webdataset_and_datasets_read_a_pack(image_folder, tmp_path, monkeypatch):
    wds = pytest.importorskip("webdataset")
    pack(image_folder, tmp_path / "shards", images_per_shard=7)
    pattern = str(tmp_path / "shards" / "shard-{000000..000003}.tar")
    found = list(wds.WebDataset(pattern, shardshuffle=False).decode("pil").to_tuple("png", "cls", "json"))
    assert len(found) == 24 and {cls for _, cls, _ in found} == {0, 1}
    assert all(["cat", "dog"][cls] == facts["label"] for _, cls, facts in found)
    datasets = pytest.importorskip("datasets")
    pack(image_folder, tmp_path / "parquet", to="parquet")
    rows = datasets.load_dataset(
        "parquet", data_files=f"{tmp_path}/parquet/*.parquet", cache_dir=str(tmp_path / "cache")
    )["train"]
    assert rows[0]["image"].size[1] == 24 and set(rows["label"]) == {"cat", "dog"}


def test_class_names_of_datasets_and_missing_labels(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "fine": datasets.ClassLabel(names=["cat", "dog"])})

    def saved(labels: list[int]) -> object:
        rows = {"img": [{"bytes": png(9 * i), "path": None} for i in range(len(labels))], "fine": labels}
        return datasets.Dataset.from_dict(rows, features=features)

    parts = {"train": saved([0, 1, 0, 1]), "validation": saved([1, 0]), "test": saved([-1, -1])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    found = splits_of(tmp_path / "saved")
    assert found.train.classes == ("cat", "dog") and found.train.labels.tolist() == [0, 1, 0, 1]
    assert len(found.val) == 2 and found.test is None
    assert len(read_unlabeled(tmp_path / "saved")) == 6


def test_check_corrections_and_unlabelled_images(whole, tmp_path):
    images, _ = whole
    data = Path(as_shards(images, tmp_path / "made"))
    (tmp_path / "relabel.csv").write_text("path,label\ncat/0.png,dog\n")
    (tmp_path / "exclude.csv").write_text("path\ndog/1.png\n")
    found = splits_of(data, relabel=str(tmp_path / "relabel.csv"), exclude=str(tmp_path / "exclude.csv"))
    everything = found.everything
    assert len(everything) == 23 and everything.label_text(everything.paths.index("cat/0.png")) == "dog"
    (tmp_path / "exclude.csv").write_text("path\ndog/100.png\n")
    with pytest.raises(DataError, match=r"dog/100\.png, which is no image"):
        splits_of(data, exclude=str(tmp_path / "exclude.csv"))
    assert not read_corrections(data, None, None).labels
    twice = write_tar(
        tmp_path / "twice.tar", [(f"a/{i}.png", png(1)) for i in range(2)] + [("b/0.png", png(5))]
    )
    assert duplicates_of(read_table(twice).images, DataConfig()).exact == ((0, 1),)
    unlabeled, copies = find_unlabeled(data, [splits_of(images).val])
    assert (len(unlabeled), len(copies)) == (18, 6)
    joined = splits_of(images).train.joined(unlabeled)
    assert open_rgb(joined.file(len(joined) - 1)).size[1] == 24
    assert image_root(data / "shard-000000.tar") == data


# Elsewhere


def test_a_run_elsewhere_is_not_read_unless_named(whole, tmp_path, capsys):
    data = as_url(whole[0], tmp_path / "made")
    run = train(data, tmp_path / "run").folder
    assert json.loads((run / "config.json").read_text())["data"]["root"] == data
    with pytest.raises(SystemExit):
        main(["export", str(run), "--to=onnx", "--int8", f"--out={tmp_path / 'a.onnx'}"])
    assert "read only if you name it" in capsys.readouterr().err


def test_a_url_that_changes_is_downloaded_again(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for count in (3, 4):
        shard = write_tar(tmp_path / "a.tar", [(f"{k}/{i}.png", png(i)) for k in "ab" for i in range(count)])
        memory.pipe("/changing/a.tar", shard.read_bytes())
        assert len(read_table(Path("memory://changing/a.tar")).images) == 2 * count
    with pytest.raises(DataError, match=r"memory://changing/b\.tar cannot be downloaded"):
        read_table(Path("memory://changing/b.tar"))


def test_locations():
    assert sources.url_of(Path("s3://bucket/a-{0..3}.tar")) == "s3://bucket/a-{0..3}.tar"
    assert sources.url_of(Path("file:///a/b.tar")) == "file:///a/b.tar"
    assert sources.url_of(Path("C:/a/b.tar")) is None and sources.is_remote(Path("hf:beans"))
    expanded = sources.expand_pattern(Path("{a,b}-{08..10}.tar"))
    assert list(map(str, expanded)) == [f"{x}-{n}.tar" for x in "ab" for n in ("08", "09", "10")]
    for pattern in ("{9..1}", "{0..99999999}", "{0..9999}{0..9999}"):
        with pytest.raises(DataError):
            sources.expand_pattern(Path(pattern))


@pytest.mark.parametrize(
    ("package", "data"),
    [("pyarrow", "a.parquet"), ("openpyxl", "a.xlsx"), ("datasets", "hf:beans"), ("fsspec", "s3://b/a.tar")],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, package, data):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, package, None)
    for name in ("a.parquet", "a.xlsx"):
        Path(name).write_bytes(b"x")
    with pytest.raises(DependencyError, match=rf'needs {package}; pip install "deitkit\[data\]"'):
        read_table(Path(data))


# Hostile and broken


def with_links(path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("a/0.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    return path


def huge(path: Path) -> Path:
    """A header that promises a terabyte."""
    member = tarfile.TarInfo("a/0.png")
    member.size = 1 << 40
    path.write_bytes(member.tobuf() + png() + bytes(1024))
    return path


def long_header(path: Path) -> Path:
    """A long name of a gigabyte."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    path.write_bytes(member.tobuf() + bytes(2048))
    return path


def cut(path: Path, keep: float) -> Path:
    whole = write_tar(path, [(f"{k}/{i}.png", png(i)) for k in "ab" for i in range(8)]).read_bytes()
    path.write_bytes(whole[: round(len(whole) * keep)])
    return path


def damaged_header(path: Path) -> Path:
    whole = bytearray(
        write_tar(path, [(f"{k}/{i}.png", png(i)) for k in "ab" for i in range(8)]).read_bytes()
    )
    whole[1024 * 4 + 3] ^= 255
    path.write_bytes(whole)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: cut(path, 0.5), "cannot be read as a tar file"),
        (lambda path: cut(path, 0.02), "cannot be read as a tar file|is not a tar file"),
        (lambda path: cut(path, 0.0), "is not a tar file"),
        (damaged_header, r"cannot be read as a tar file \(cut short or damaged"),
        (huge, "cannot be read as a tar file"),
        (long_header, r"cannot be read as a tar file \(a header of too many bytes"),
        (with_links, "holds a link"),
        (lambda path: write_tar(path, [("/etc/0.png", png())]), "holds a file named '/etc/0.png'"),
        (lambda path: write_tar(path, [("a/../../0.png", png())]), "holds a file named"),
        (
            lambda path: write_tar(path, [("a/0.png", png()), ("a/1.png", png()), ("a/0.png", png())]),
            "two samples named 'a/0'",
        ),
        (lambda path: write_tar(path, [("a/0.png", png()), ("a/0.png", png())]), "two files '.png'"),
        (lambda path: write_tar(path, [("a/0.png", png()), ("a/0.jpg", png())]), "has two images"),
        (lambda path: write_tar(path, [("0.png", png()), ("1.png", png())]), "0.png in .* has no label"),
        (lambda path: write_tar(path, [("0.png", png()), ("0.json", b"[1]")]), "no JSON object"),
        (lambda path: write_tar(path, [("0.png", png()), ("0.json", b"[" * 10**5)]), "no JSON object"),
        (lambda path: write_tar(path, [("0.png", png()), ("0.cls", b"\xff")]), "not UTF-8"),
        (lambda path: write_tar(path, [("0.png", png()), ("0.cls", bytes(2 << 20))]), "label of 2,097,152"),
        (lambda path: write_tar(path, [("0.png", png()), ("0.json", b'{"label": {}}')]), "has the label"),
        (
            lambda path: write_tar(path, [("0.png", png()), ("0.json", b'{"label": 1, "split": "dogs"}')]),
            "has the split 'dogs'",
        ),
        (
            lambda path: write_tar(path, [("0.png", png()), ("0.json", b'{"label": 1, "path": "/etc/x"}')]),
            "has the path '/etc/x'",
        ),
        (lambda path: write_tar(path, [("readme.md", b"")]), "holds no images"),
    ],
)
def test_hostile_shards_are_refused(tmp_path, make, message):
    with pytest.raises(DataError, match=message) as refused:
        read_table(make(tmp_path / "a.tar"))
    assert "\n" not in str(refused.value)


def test_images_in_a_shard_have_the_limits_of_files(tmp_path, monkeypatch):
    shard = write_tar(tmp_path / "a.tar", [("a/0.png", b"GIF"), ("a/1.png", png()), ("b/0.png", b"")])
    images = read_table(shard).images
    for i in (0, 2):
        with pytest.raises(UnreadableImage, match="not an image"):
            open_rgb(images.file(i))
    monkeypatch.setattr("deitkit.data.image_file.MAX_FILE_BYTES", 10)
    with pytest.raises(UnreadableImage, match="too large"):
        open_rgb(images.file(1))
    monkeypatch.undo()
    shard.write_bytes(shard.read_bytes()[:1100])
    with pytest.raises(UnreadableImage, match="cut short"):
        open_rgb(images.file(1))


def test_a_damaged_note_is_made_again(tmp_path):
    import os

    shard = write_tar(tmp_path / "a.tar", [("a/0.png", png()), ("b/1.png", png())])
    expected = read_table(shard).images
    [note] = (Path(os.environ["DEITKIT_CACHE"]) / "shards").iterdir()
    for content in (b"", b"{}", b"\xff", note.read_bytes().replace(b"a/0", b"a/1")):
        note.write_bytes(content)
        assert read_table(shard).images.paths == expected.paths


def table_of(file: Path, columns: dict[str, object]) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), file)
    return file


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": [png()], "label": [1.5]}, "has labels of the type double"),
        ({"image": [png()], "label": [{"a": 1}]}, "has labels of the type struct"),
        ({"image": [png()], "label": [None]}, "has labels of the type null|no label"),
        ({"image": [png()], "label": ["a"], "split": ["dogs"]}, "has the split 'dogs'"),
        ({"image": [png()], "label": ["a"], "size": ["x"]}, "column 'size' that is not of whole numbers"),
        ({"image": [png()], "img": [png()], "label": ["a"]}, "images in the columns 'image' and 'img'"),
        ({"image": [png()], "label": ["a"], "path": ["../x"]}, "has the path '../x'"),
        ({"image": [png()] * 2, "label": ["a"] * 2, "path": ["x", "x"]}, "row 0 of .* and row 1 of"),
        ({"image": [], "label": []}, "of null; give text"),
        ({"image": ["missing.png"], "label": ["a"]}, "holds no such file"),
        ({"image": [1.0], "label": ["a"]}, "has a column 'image' of double"),
        ({"label": ["a"]}, "has no column 'path'"),
    ],
)
def test_tables_with_wrong_types_are_refused(tmp_path, columns, message):
    with pytest.raises(DataError, match=message):
        read_table(table_of(tmp_path / "a.parquet", columns))


def test_rows_without_an_image_are_unreadable(tmp_path):
    data = table_of(tmp_path / "a.parquet", {"image": [png(), b"x", None, png()], "label": [0, 0, 1, 1]})
    images = read_table(data).images
    assert open_rgb(images.file(3)).size == (10, 10)
    for i, why in ((1, "not an image"), (2, "holds no image")):
        with pytest.raises(UnreadableImage, match=why):
            open_rgb(images.file(i))
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(UnreadableImage):
        open_rgb(images.file(0))
    with pytest.raises(DataError, match="cannot be read"):
        read_table(data)


def test_row_groups_of_any_size(tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    monkeypatch.setattr(arrow_tables, "_HELD", 500)
    rows = pa.table({"image": [png(i) for i in range(20)], "label": [i % 2 for i in range(20)]})
    pq.write_table(rows, tmp_path / "a.parquet", row_group_size=3)
    images = read_table(tmp_path / "a.parquet").images
    for i in np.random.RandomState(0).permutation(20):
        assert open_rgb(images.file(int(i))).getpixel((0, 0)) == (i, i, i)
    monkeypatch.setattr(arrow_tables, "_MOST_GROUP", 10)
    arrow_tables._opened.cache_clear()
    with pytest.raises(DataError, match="has a row group of"):
        read_table(tmp_path / "a.parquet")


def test_workbooks_that_are_none(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    path = tmp_path / "a.xlsx"
    with pytest.raises(DataError, match="not a regular file"):
        read_table(path)
    path.write_bytes(b"PK\3\4")
    with pytest.raises(DataError, match="is no Excel file"):
        read_table(path)
    book = openpyxl.Workbook()
    for row in [
        ("path", "label", "split"),
        ("x.png", 1.0, "train"),
        (None, None, None),
        ("y.png", 2, "dogs"),
    ]:
        book.active.append(row)
    book.save(path)
    (tmp_path / "x.png").write_bytes(png())
    (tmp_path / "y.png").write_bytes(png())
    with pytest.raises(DataError, match=r"line 4 of .* has the split 'dogs'"):
        read_table(path)
    book.active["C4"] = "val"
    book.save(path)
    assert read_table(path).images.classes == ("1", "2")


def test_every_reader_refuses_in_one_sentence(tmp_path):
    """Bytes that are none of the formats."""
    for suffix in (".tar", ".parquet", ".xlsx"):
        for content in (b"", b"PAR1" + bytes(20) + b"PAR1", bytes(2048), b"\xff" * 999):
            path = tmp_path / f"a{suffix}"
            path.write_bytes(content)
            with pytest.raises(DeitkitError) as refused:
                read_table(path)
            assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000


def test_limits_are_what_is_tested():
    assert webdataset_shards._MOST_HEADER < 1 << 30 and arrow_tables._MOST_GROUP <= 2 << 30
