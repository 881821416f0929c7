"""Corrected labels and excluded images: files stay, and a line that fits nothing is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from deitkit.config import DataConfig
from deitkit.data.splits import Splits, load_splits
from deitkit.errors import DataError

from ..conftest import write_images, write_labelled


def corrected(data: Path, tmp_path: Path, relabel: str | None = None, exclude: str | None = None) -> Splits:
    files = {}
    for name, text in (("relabel", relabel), ("exclude", exclude)):
        if text is not None:
            files[name] = str(tmp_path / f"{name}.csv")
            Path(files[name]).write_text(text, encoding="utf-8")
    return load_splits(data, DataConfig(**files))


def labels(splits: Splits) -> dict[str, str]:
    images = splits.everything
    return {path: images.label_text(i) for i, path in enumerate(images.paths)}


def test_labels_are_replaced_and_images_left_out(image_folder, tmp_path):
    before = labels(load_splits(image_folder, DataConfig()))
    after = labels(
        corrected(image_folder, tmp_path, "path,label,given\ncat/0.png,dog,cat\n", "path\n./dog/1.png\n")
    )
    assert after == {path: label for path, label in before.items() if path != "dog/1.png"} | {
        "cat/0.png": "dog"
    }
    assert (image_folder / "cat" / "0.png").exists() and (image_folder / "dog" / "1.png").exists()


def test_given_splits_are_corrected(tmp_path):
    for split in ("train", "val"):
        write_images(tmp_path / "data" / split, count=3)
    found = corrected(
        tmp_path / "data", tmp_path, "path;label\nval/cat/0.png;dog\n", "file\ntrain/dog/2.png\n"
    )
    assert found.val.counts().tolist() == [2, 4] and found.train.counts().tolist() == [3, 2]


def test_a_table_is_corrected(tmp_path):
    data = write_images(tmp_path / "data", count=4)
    rows = [f"{p.relative_to(data)},{p.parent.name}" for p in sorted(data.glob("*/*.png"))]
    (data / "labels.csv").write_text("\n".join(["path,label", *rows]))
    assert labels(corrected(data, tmp_path, "path,label\ncat/3.png,dog\n"))["cat/3.png"] == "dog"


def test_multilabel_images_are_corrected(tmp_path):
    data = write_labelled(tmp_path / "data")
    found = labels(corrected(data, tmp_path, "path,labels\n0.png,red;blue\n1.png,\n"))
    assert found["0.png"] == "blue;red" and found["1.png"] == ""


def test_lists_without_rows_change_nothing(image_folder, tmp_path):
    before = load_splits(image_folder, DataConfig())
    after = corrected(image_folder, tmp_path, "path,label\n", "path\n")
    assert (before.train.paths, before.val.paths) == (after.train.paths, after.val.paths)


@pytest.mark.parametrize(
    ("relabel", "exclude", "sentence"),
    [
        (
            "path,label\ncat/none.png,dog\n",
            None,
            "line 2 of .*relabel.csv names cat/none.png, and .* holds no such",
        ),
        ("path,label\n,dog\n", None, "names no image"),
        ("path,label\ncat/0.png,dig\n", None, "has the label 'dig', which is no class .*did you mean 'dog'"),
        ("path,label\ncat/0.png,\n", None, "has 0 labels"),
        ("path,label\ncat/0.png,cat;dog\n", None, "has 2 labels"),
        ("path,label\ncat/0.png,dog\ncat/0.png,cat\n", None, "is in lines 2 and 3"),
        ("path\ncat/0.png\n", None, "has no column 'label'"),
        ("", None, "has no column 'path'; .*, and has nothing"),
        (None, "name\ncat/0.png\n", "has no column 'path'"),
        (None, "path\ncat/none.png\n", "holds no such file"),
        (None, "path\nnotes.txt\n", "names notes.txt, which is no image of a class"),
        ("path,label\ncat/0.png,dog\n", "path\ncat/0.png\n", "is in .*relabel.csv and in .*exclude.csv"),
        (None, "path\n" + "".join(f"cat/{i}.png\n" for i in range(12)), "leave no image of the class 'cat'"),
    ],
)
def test_lists_that_fit_nothing(image_folder, tmp_path, relabel, exclude, sentence):
    (image_folder / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=sentence):
        corrected(image_folder, tmp_path, relabel, exclude)


def test_a_list_that_is_not_there(image_folder, tmp_path):
    with pytest.raises(DataError, match="cannot be read: there is no such file"):
        load_splits(image_folder, DataConfig(exclude=str(tmp_path / "none.csv")))
    with pytest.raises(DataError, match="not a regular file"):
        load_splits(image_folder, DataConfig(exclude=str(tmp_path)))
    with pytest.raises(DataError, match="the path of a CSV file, and one is empty"):
        load_splits(image_folder, DataConfig(relabel=""))
