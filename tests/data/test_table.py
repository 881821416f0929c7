"""labels.csv: what is read from it, how it is split, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deitkit.data.image_set import ImageSet, targets_of
from deitkit.data.splits import load_splits
from deitkit.data.table import read_table
from deitkit.errors import DeitkitError


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
    return load_splits(folder, split=how, val_fraction=fraction, seed=seed)


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
    assert table.parts == ("val",)


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
    with pytest.raises(DeitkitError, match=r"in training or in validation only; add images of it"):
        split(tmp_path, fraction=0.5)
    write(tmp_path, "path,labels\n0.png,a\n1.png,a\n2.png,c\n3.png,c\n")
    with pytest.raises(DeitkitError, match=r"the label 'a' .*only; give --set data\.split=stratified"):
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
        ("", r"labels\.csv has no column 'path'; its first line must be path,labels"),
        ("path,labels\n", r"has no rows"),
        ("path,label\na.png,x\n", r"has the column 'label'.*did you mean 'labels'\?"),
        (
            "path,labels,breed\na.png,x,y\n",
            r"has the column 'breed'.*take it out.*sub-folders are",
        ),
        ("path,split\na.png,val\n", r"has no column 'labels'"),
        ("path,labels,labels\na.png,x,y\n", r"more than one column 'labels'"),
        ("path,labels\na.png,x,y\n", r"line 2 of .* more cells than the header; put labels apart by ;"),
        ("path,labels\na.png,x\n,y\n", r"line 3 of .* names no image"),
        ("path,labels\na.png,x\nb.png,y\n./a.png,y\n", r"a\.png stands in lines 2 and 4"),
        ("path,labels\na.png,x\nb.jpg,y\n", r"line 3 of .* names b\.jpg, and .* holds no such file"),
        ("path,labels\na.png,\nb.png,;\n", r"no image in .*labels\.csv has a label"),
        ("path,labels\na.png,Cat\nb.png,cat\n", r"the labels 'Cat' and 'cat' in .* differ only by case"),
        ("path,labels\na.png,x\nb.png,x;y\n", r"class 'y' in .*labels\.csv has one image"),
        ("path,labels,split\na.png,x,train\nb.png,x,\n", r"line 3 of .* has the split ''; give train, val"),
        ("path,labels,split\na.png,x,train\n", r"gives no images to validate on"),
        ("path,labels,split\na.png,x,val\n", r"gives no images to train on"),
        ("path,labels,split\na.png,x;y,train\nb.png,y,val\n", r"classes of the parts differ in 'x'"),
        ("path,labels,split\na.png,x,train\nb.png,x;z,val\n", r"classes of the parts differ in 'z'"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_in_a_sentence(text, message, tmp_path):
    with pytest.raises(DeitkitError, match=message):
        split(write(tmp_path, text))


def test_a_table_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "labels.csv").write_bytes("path,labels\na.png,Käfer\n".encode("latin-1"))
    with pytest.raises(DeitkitError, match=r"cannot be read .*; save it as a CSV in UTF-8"):
        read_table(tmp_path)


def test_labels_of_a_run_keep_their_places(tmp_path):
    write(tmp_path, "path,labels\na.png,y\n")
    images = read_table(tmp_path, ("z", "y", "x")).images
    assert images.classes == ("z", "y", "x") and images.labels.tolist() == [[False, True, False]]
    with pytest.raises(DeitkitError, match="has the label 'y', which the run does not know; it knows x, z"):
        read_table(tmp_path, ("x", "z"))
