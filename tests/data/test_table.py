"""Tables: which files are tables, what is read from them, how they are split, and what is refused."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from deitkit.classifier import load
from deitkit.config import DataConfig
from deitkit.data import table
from deitkit.data.image_set import ImageSet, targets_of
from deitkit.data.splits import load_splits
from deitkit.data.table import find_table, image_root, is_table, read_table
from deitkit.errors import DataError
from deitkit.evaluation.run_images import run_splits

from ..conftest import TINY, write_images
from ..test_bad_input import main


def write(folder: Path, text: str) -> Path:
    """A labels.csv, and an empty file for each path that it names."""
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    for line in text.splitlines()[1:]:
        path = folder / line.split(",")[0].strip().replace("\\", "/")
        if path.suffix == ".png":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return folder


def split(folder: Path, how: str = "stratified", fraction: float = 0.25, seed: int = 0):
    return load_splits(folder, DataConfig(split=how, val_fraction=fraction, split_seed=seed))


def test_labels_become_a_table_in_the_order_of_the_file(tmp_path):
    write(tmp_path, "\ufeffpath,labels\nb/1.png, dog | cat \na.png,\nc.png,eel;cat;cat;\n")
    images = read_table(tmp_path).images
    assert images.task == "multilabel" and images.classes == ("cat", "dog", "eel")
    assert images.paths == ("b/1.png", "a.png", "c.png")
    assert images.labels.tolist() == [[True, True, False], [False] * 3, [True, False, True]]
    assert [images.label_text(i) for i in range(3)] == ["cat;dog", "", "cat;eel"]
    assert images.counts().tolist() == [2, 1, 1] and images.members(0).tolist() == [0, 2]


def test_columns_may_stand_in_any_order_and_cells_be_quoted(tmp_path):
    (tmp_path / "a, b.png").touch()
    (tmp_path / "labels.csv").write_text('labels,split,path\n"x, y;z",val,"a, b.png"\n')
    table = read_table(tmp_path)
    assert table.images.paths == ("a, b.png",) and table.images.classes == ("x, y", "z")
    assert table.splits == ("val",)


def test_targets_of_both_kinds_of_labels():
    several = targets_of(np.array([[True, False], [False, False]]), 2)
    assert several.dtype == np.float32 and several.tolist() == [[1, 0], [0, 0]]
    assert targets_of(np.array([1, -1]), 2).tolist() == [[0, 1], [0, 0]]


def test_labels_count_in_the_fingerprint(tmp_path):
    one = read_table(write(tmp_path, "path,labels\na.png,x;y\nb.png,x\n")).images
    other = read_table(write(tmp_path, "path,labels\na.png,x\nb.png,x;y\n")).images
    assert one.classes == other.classes and one.fingerprint() != other.fingerprint()


def test_a_split_column_decides(tmp_path):
    write(
        tmp_path,
        "path,labels,split\na.png,x,train\nb.png,y,Train\nc.png,x;y,validation\nd.png,x;y,test\n",
    )
    splits = split(tmp_path)
    assert splits.train.paths == ("a.png", "b.png") and splits.val.paths == ("c.png",)
    assert splits.test is not None and splits.test.paths == ("d.png",)
    assert "the column 'split'" in splits.how


def random_table(n: int = 400, seed: int = 0) -> ImageSet:
    """Labels of very different frequency, from a half to one in fifty, and images without any."""
    rng = np.random.RandomState(seed)
    labels = rng.rand(n, 5) < np.array([0.5, 0.2, 0.1, 0.05, 0.02])
    return ImageSet(Path("x"), tuple(f"{i}.png" for i in range(n)), labels, tuple("abcde"))


def as_table(folder: Path, images: ImageSet) -> Path:
    rows = [f"{path},{images.label_text(i)}" for i, path in enumerate(images.paths)]
    return write(folder, "path,labels\n" + "\n".join(rows) + "\n")


def test_held_out_images_have_each_label_in_proportion(tmp_path):
    images = random_table()
    splits = split(as_table(tmp_path, images))
    assert sorted(splits.train.paths + splits.val.paths) == sorted(images.paths)
    assert len(splits.val) == pytest.approx(100, abs=8)
    wanted = 0.25 * images.counts()
    assert np.abs(splits.val.counts() - wanted).max() <= 4
    assert abs(splits.val.counts()[4] - wanted[4]) <= 1  # the rarest comes first
    bare = sum(not row.any() for row in splits.val.labels)
    assert bare == round(0.25 * sum(not row.any() for row in images.labels))
    assert split(tmp_path).val.paths == splits.val.paths != split(tmp_path, seed=1).val.paths


def test_rare_labels_that_come_together_lie_on_both_sides(tmp_path):
    """Each rare label has two images, each with one of three images of a fourth label."""
    rows = ["0.png,a;d", "1.png,a", "2.png,b;d", "3.png,b", "4.png,c;d", "5.png,c", "6.png,", "7.png,"]
    write(tmp_path, "path,labels\n" + "\n".join(rows) + "\n")
    for seed in range(20):
        splits = split(tmp_path, fraction=0.5, seed=seed)
        assert (splits.train.counts() > 0).all() and (splits.val.counts() > 0).all()


def test_labels_that_cannot_lie_on_both_sides_are_named(tmp_path):
    """Three images, of which each two share a label: two of them lie on the same side, whatever is drawn."""
    write(tmp_path, "path,labels\n0.png,a;c\n1.png,a;b\n2.png,b;c\n")
    with pytest.raises(DataError, match=r"in training or in validation only; add images of it"):
        split(tmp_path, fraction=0.5)
    write(tmp_path, "path,labels\n0.png,a\n1.png,a\n2.png,c\n3.png,c;\n")
    with pytest.raises(DataError, match=r"the label 'a' .*only; give --set data\.split=stratified"):
        split(tmp_path, "blocks", fraction=0.5)


def test_blocks_keep_neighbours_together(tmp_path):
    rows = [f"shot-{i}.png,{'x' if i % 2 else 'x;y'}" for i in range(12)]
    write(tmp_path, "path,labels\n" + "\n".join(rows) + "\n")
    assert split(tmp_path, "blocks").val.paths == ("shot-9.png", "shot-10.png", "shot-11.png")


def test_a_share_holds_every_label_and_grows_by_addition():
    images = random_table()
    small, large = images.keep_fraction(0.05, seed=0), images.keep_fraction(0.3, seed=0)
    assert set(small.paths) < set(large.paths) and (small.counts() > 0).all()
    assert len(small) < 0.08 * len(images) and len(large) == pytest.approx(120, abs=4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"labels\.csv has no column 'path'; its first line has to name one path, "),
        ("path,labels\n", r"has no rows"),
        ("path,lables\na.png,x\n", r"has no column 'label'; did you mean 'labels'\?"),
        ("path,label\na.png,x\nb.png,x\n", r"has only one class, 'x'"),
        ("path,label\na.png,x\nb.png,\n", r"line 3 of .* has no label in 'label'; fill it in"),
        ("path,class\na.png,x\nb.png,x;y\n", r"line 3 of .* several labels, 'x;y'; name the column 'labels'"),
        ("path,labels,splitt\na.png,x,val\n", r"has the column 'splitt'; did you mean 'split'\?"),
        ("path,split\na.png,val\n", r"has no column 'label'"),
        ("path,labels,labels\na.png,x,y\n", r"has the columns 'labels' and 'labels'; keep one of them"),
        ("path,class,Label\na.png,x,y\n", r"has the columns 'class' and 'label'; keep one of them"),
        ("file,path,label\na.png,a.png,y\n", r"has the columns 'file' and 'path'; keep one of them"),
        ("path,labels\na.png,x,y\n", r"line 2 of .* more cells than the header; separate labels by ;"),
        ("path,labels\na.png,x\n,y\n", r"line 3 of .* names no image"),
        ("path,labels\na.png,x\nb.png,y\n./a.png,y\n", r"a\.png is in lines 2 and 4"),
        ('path,labels\n",\n0"\n', r"line 3 of .* names ',\\n0', and .* holds no such file"),
        ("path,labels\na.png,x\nb.jpg,y\n", r"line 3 of .* names b\.jpg, and .* holds no such file"),
        ("path,labels\na.png,\nb.png,;\n", r"no image in .*labels\.csv has a label"),
        ("path,labels\na.png,Cat\nb.png,cat\n", r"the labels 'Cat' and 'cat' in .* differ only by case"),
        ("path,labels\na.png,x\nb.png,x;y\n", r"class 'y' in .*labels\.csv has one image"),
        ("path,labels,split\na.png,x,train\nb.png,x,\n", r"line 3 of .* has the split ''; give train, val"),
        ("path,labels,split\na.png,x,train\n", r"gives no images to validate on"),
        ("path,labels,split\na.png,x,val\n", r"gives no images to train on"),
        ("path,labels,split\na.png,x;y,train\nb.png,y,val\n", r"classes of the splits differ in 'x'"),
        ("path,labels,split\na.png,x,train\nb.png,x;z,val\n", r"classes of the splits differ in 'z'"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_a_sentence(text, message, tmp_path):
    with pytest.raises(DataError, match=message):
        split(write(tmp_path, text))


def test_a_table_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "labels.csv").write_bytes("path,labels\na.png,Käfer\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"cannot be read .*; save it as a CSV in UTF-8"):
        read_table(tmp_path)


def test_labels_of_a_run_keep_their_places(tmp_path):
    write(tmp_path, "path,labels\na.png,y\n")
    images = read_table(tmp_path, ("z", "y", "x"), "multilabel").images
    assert images.classes == ("z", "y", "x") and images.labels.tolist() == [[False, True, False]]
    images = read_table(tmp_path, ("z", "y", "x"), "multiclass").images
    assert images.classes == ("z", "y", "x") and images.labels.tolist() == [1]
    with pytest.raises(DataError, match="has the label 'y', which the run does not know; it knows x, z"):
        read_table(tmp_path, ("x", "z"))


ONE_CLASS_EACH = {"a.png": "x y", "b/c.png": "z", "d.png": "x y"}


def as_text(columns: str, separator: str = ",", quote: str = "") -> str:
    rows = [separator.join(f"{quote}{cell}{quote}" for cell in row) for row in ONE_CLASS_EACH.items()]
    return "\n".join([columns.replace(",", separator), *rows]) + "\n"


def touch_images(folder: Path) -> Path:
    for name in ONE_CLASS_EACH:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    "columns", ["path,label", "Filename,Label", "image,class", "file,category", "path,labels"]
)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_one_label_per_row_is_multiclass_whatever_the_columns_are_called(tmp_path, columns, separator, quote):
    (touch_images(tmp_path) / "labels.csv").write_text(as_text(columns, separator, quote))
    images = read_table(tmp_path).images
    assert images.task == "multiclass" and images.classes == ("x y", "z")
    assert images.paths == tuple(ONE_CLASS_EACH) and images.labels.tolist() == [0, 1, 0]
    assert images.counts().tolist() == [2, 1]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_files_that_spreadsheets_write_are_read(tmp_path, encoding, newline):
    (touch_images(tmp_path) / "ä.png").touch()
    text = as_text("path,label") + "ä.png,Käfer\n\n"
    (tmp_path / "labels.csv").write_bytes(text.replace("\n", newline).encode(encoding))
    assert read_table(tmp_path).images.classes == ("Käfer", "x y", "z")


@pytest.mark.parametrize(
    ("rows", "task"),
    [
        ("a.png,x\nb.png,y", "multiclass"),
        ("a.png,x\nb.png,", "multilabel"),
        ("a.png,x|y\nb.png,y", "multilabel"),
    ],
)
def test_the_column_labels_is_multilabel_if_a_row_has_none_or_several(tmp_path, rows, task):
    write(tmp_path, f"path,labels\n{rows}\n")
    assert read_table(tmp_path).images.task == task
    assert read_table(tmp_path, task="multilabel").images.task == "multilabel"


def test_other_columns_are_named_and_ignored(tmp_path, capsys):
    write(tmp_path, "path,id,label,breed\na.png,7,x,y\nb.png,8,z,y\n")
    assert read_table(tmp_path).images.classes == ("x", "z")
    assert "columns that are not read: id, breed" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mine.csv", "TRAIN.CSV", "a.tsv"])
def test_the_only_csv_of_a_folder_is_its_table(tmp_path, name, capsys):
    (touch_images(tmp_path) / name).write_text(as_text("path,label"))
    assert find_table(tmp_path) == tmp_path / name
    assert read_table(tmp_path).images.classes == ("x y", "z")
    assert f"labels are read from {tmp_path / name}" in capsys.readouterr().err
    (tmp_path / "other.csv").write_text(as_text("path,label"))
    assert not is_table(tmp_path)  # which of them?
    assert read_table(tmp_path / name).images.classes == ("x y", "z")
    (tmp_path / "labels.csv").write_text("path,label\na.png,p\nd.png,q\n")
    assert read_table(tmp_path).images.classes == ("p", "q")


def test_a_csv_beside_class_folders_is_no_table(tmp_path):
    """Unless it names files that are there."""
    for path in ("cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "sizes.csv").write_text("path,width\ncat/1.png,3\n")
    assert not is_table(tmp_path)
    (tmp_path / "sizes.csv").write_text("image,label\n1.png,x\n")
    assert not is_table(tmp_path) and split(tmp_path).train.classes == ("cat", "dog")
    (tmp_path / "sizes.csv").write_text("image,label\ncat/1.png,x\ncat/2.png,x\ndog/1.png,y\ndog/2.png,y\n")
    assert split(tmp_path).train.classes == ("x", "y")


def test_paths_are_relative_to_the_table_that_is_given(tmp_path, monkeypatch):
    (touch_images(tmp_path / "d") / "some.csv").write_text(as_text("path,label"))
    monkeypatch.chdir(tmp_path)
    for data in (tmp_path / "d" / "some.csv", Path("d/some.csv")):
        images = read_table(data).images
        assert image_root(data) == images.root == data.parent
        assert all(images.file(i).is_file() for i in range(3))
    assert image_root(tmp_path / "d") == tmp_path / "d"
    with pytest.raises(DataError, match=r"nothing\.csv cannot be read"):
        read_table(tmp_path / "nothing.csv")


def test_a_table_of_one_class_each_is_split_by_class(tmp_path):
    rows = [f"{i}.png,{'x' if i % 4 else 'y'}" for i in range(40)]
    write(tmp_path, "path,label\n" + "\n".join(rows) + "\n")
    splits = split(tmp_path)
    assert splits.val.counts().tolist() == [8, 2] and splits.train.counts().tolist() == [22, 8]
    assert split(tmp_path, "blocks").val.counts().tolist() == [8, 2]


def test_images_that_a_table_does_not_list_are_counted(tmp_path, capsys):
    write(tmp_path, "path,label\na.png,x\nsub/b.png,x\nc.png,y\n./d.png,y\n")
    for name in ("e.png", "sub/f.jpg", "notes.txt"):
        (tmp_path / name).touch()
    split(tmp_path, fraction=0.5)
    lines = [line for line in capsys.readouterr().err.splitlines() if "not read" in line]
    assert len(lines) == 1 and "3 files are not read" in lines[0]
    assert "2 images not in labels.csv" in lines[0] and "1 .txt" in lines[0]
    split(tmp_path / "labels.csv", fraction=0.5)  # the folder may hold anything
    assert "not read" not in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="needs a device that never ends")
def test_only_regular_files_are_tables(tmp_path):
    (tmp_path / "labels.csv").symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"labels\.csv is not a regular file"):
        split(tmp_path)
    (tmp_path / "labels.csv").unlink()
    os.mkfifo(tmp_path / "labels.csv")
    with pytest.raises(DataError, match=r"labels\.csv is not a regular file"):
        split(tmp_path)
    (tmp_path / "labels.csv").unlink()
    (tmp_path / "labels.csv").symlink_to("/proc/self/status")
    with pytest.raises(DataError, match=r"labels\.csv is not a regular file"):
        split(tmp_path)


def test_tables_of_any_size_are_refused(tmp_path, monkeypatch):
    write(tmp_path, "path,labels\na.png,x\nb.png,y;x\n")
    monkeypatch.setattr(table, "_MAX_CELLS", 3)
    with pytest.raises(DataError, match="has 2 labels for 2 images; check its columns"):
        read_table(tmp_path)
    monkeypatch.setattr(table, "_MAX_LINE", 10)
    with pytest.raises(DataError, match="has a line of over 10 characters"):
        read_table(tmp_path)
    monkeypatch.setattr(table, "_MAX_BYTES", 10)
    with pytest.raises(DataError, match=r"is too large for a table \(\d+ bytes\)"):
        read_table(tmp_path)


def test_damaged_tables_are_refused_in_a_sentence(tmp_path):
    """Seeded damage to a table that is read: the only error is a DataError."""
    good = write(tmp_path, "path,labels,split\na.png,x;y,train\nb.png,y,val\n") / "labels.csv"
    whole = good.read_bytes()
    rng = np.random.RandomState(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            at = rng.randint(len(damaged))
            damaged[at : at + rng.randint(3)] = bytes(
                rng.choice(list(b',;|"\n\r\t\x00\xff\xfeax'), rng.randint(4)).tolist()
            )
            if not damaged:
                break
        good.write_bytes(damaged)
        with contextlib.suppress(DataError):
            split(tmp_path)


def test_a_run_is_trained_and_evaluated_by_a_table(tmp_path, capsys):
    data = write_images(tmp_path / "images", count=8)
    rows = [f"{path.relative_to(data)};{path.parent.name}" for path in sorted(data.glob("*/*.png"))]
    (data / "mine.csv").write_text("Filename;Class\n" + "\n".join(rows) + "\n")
    run = tmp_path / "run"
    main(["train", str(data / "mine.csv"), "--out", str(run), *TINY])
    settings = json.loads((run / "config.json").read_text())
    assert settings["task"] == "multiclass" and settings["classes"] == ["cat", "dog"]
    capsys.readouterr()
    for place in (data / "mine.csv", data):
        main(["eval", str(run), str(place), "--json"])
        found = json.loads(capsys.readouterr().out)
        assert found["notes"] == ["12 images that the run was trained on are left out."]
    assert len(run_splits(run, load(run), None).val) == 4
    assert (run / "report.html").exists()
