"""Folders of every shape are found, split and refused as a user would expect."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deitkit.config import DataConfig
from deitkit.data import folder
from deitkit.data.folder import images_under, scan
from deitkit.data.image_set import ImageSet
from deitkit.data.splits import eval_folder, load_splits, refuse_out_among_classes
from deitkit.errors import DataError


def touch(folder: Path, *names: str) -> Path:
    """Empty files: a folder is listed without a look into them."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def numbered(folder: Path, **counts: int) -> Path:
    return touch(folder, *(f"{name}/shot-{i}.png" for name, count in counts.items() for i in range(count)))


def split(data: Path, how: str = "stratified", fraction: float = 0.25, seed: int = 0):
    return load_splits(data, DataConfig(split=how, val_fraction=fraction, split_seed=seed))


def numbers(images: ImageSet, name: str) -> list[int]:
    """The numbers in the names of one class's files."""
    return sorted(int(Path(p).stem.split("-")[1]) for p in images.paths if p.startswith(f"{name}/"))


def test_images_are_found_at_any_depth_and_nothing_else(tmp_path):
    touch(tmp_path, "LICENSE", "cover.jpg", ".git/a.jpg")
    touch(tmp_path / "cat", "b.JPG", "a.jpeg", "day 2/c.TIFF", "day 2/deep/d.jfif", "notes.txt", "._b.jpg")
    touch(tmp_path / "dog", "e.webp", "f.pgm", ".cache/g.png", "h.csv")
    images = scan(tmp_path, tmp_path)
    assert images.classes == ("cat", "dog")
    assert images.paths == (
        "cat/a.jpeg",
        "cat/b.JPG",
        "cat/day 2/c.TIFF",
        "cat/day 2/deep/d.jfif",
        "dog/e.webp",
        "dog/f.pgm",
    )
    assert images.labels.tolist() == [0, 0, 0, 0, 1, 1] and images.labels.dtype == np.int64
    assert images.counts().tolist() == [4, 2]
    assert all(images.file(i).exists() for i in range(len(images)))


def test_the_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    numbered(tmp_path, a=9, b=9)
    before = scan(tmp_path, tmp_path).paths
    real = os.scandir

    class Backwards:
        def __init__(self, folder):
            self.entries = list(real(folder))[::-1]

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    assert scan(tmp_path, tmp_path).paths == before


def test_paths_are_relative_whatever_the_working_directory(tmp_path, monkeypatch):
    numbered(tmp_path / "d", a=3, b=3)
    monkeypatch.chdir(tmp_path / "d")
    assert scan(Path("."), Path(".")).paths == scan(tmp_path / "d", tmp_path / "d").paths


def test_a_subset_keeps_classes_and_labels(tmp_path):
    images = scan(numbered(tmp_path, a=3, b=3), tmp_path)
    some = images.subset(np.array([5, 0]))
    assert some.paths == ("b/shot-2.png", "a/shot-0.png") and some.labels.tolist() == [1, 0]
    assert images.subset(np.array([0])).counts().tolist() == [1, 0]


@pytest.mark.parametrize("how", ["stratified", "blocks"])
@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.9])
def test_every_class_is_on_both_sides_and_no_image_twice(tmp_path, how, fraction):
    data = numbered(tmp_path, a=2, b=40, c=7)
    splits = split(data, how, fraction)
    assert not set(splits.train.paths) & set(splits.val.paths)
    assert set(splits.train.paths) | set(splits.val.paths) == set(scan(data, data).paths)
    assert splits.train.counts().min() >= 1 and splits.val.counts().min() >= 1
    assert splits.val.counts()[1] == round(40 * fraction)
    assert splits.test is None


def test_stratified_draws_by_its_seed(tmp_path):
    data = numbered(tmp_path, a=40, b=40)
    assert split(data, seed=3).val.paths == split(data, seed=3).val.paths != split(data, seed=4).val.paths
    drawn = numbers(split(data).val, "a")
    assert np.diff(drawn).max() > 1
    assert split(data).how == "stratified, 25 % held out, seed 0"


@pytest.mark.parametrize(("seed", "first"), [(0, 30), (1, 20), (2, 10), (3, 0), (4, 30)])
def test_blocks_hold_out_one_run_of_neighbours_at_the_same_place_in_all(tmp_path, seed, first):
    splits = split(numbered(tmp_path, a=40, b=20), "blocks", seed=seed)
    assert numbers(splits.val, "a") == list(range(first, first + 10))
    assert numbers(splits.val, "b") == list(range(first // 2, first // 2 + 5))
    assert splits.how.startswith("blocks of consecutive names")


def test_blocks_take_digits_that_are_no_numbers(tmp_path):
    touch(numbered(tmp_path, a=4, b=4), "a/1\u00b22.png", "a/\u0663.png")
    splits = split(tmp_path, "blocks")  # the last 2 of 6 and the last of 4
    assert splits.val.counts().tolist() == [2, 1] and splits.train.counts().tolist() == [4, 3]


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_given_splits_are_taken_as_they_are(tmp_path, name):
    for part, count in (("train", 3), (name, 1), ("test", 2)):
        numbered(tmp_path / part, a=count, b=count)
    splits = split(tmp_path)
    assert splits.val.paths == (f"{name}/a/shot-0.png", f"{name}/b/shot-0.png")
    assert splits.test is not None and len(splits.test) == 4
    assert splits.how == f"train/ and {name}/ as given"


@pytest.mark.parametrize("names", [("train",), ("train", "test"), ("Training", "Testing", "extra")])
def test_train_without_val_is_split(tmp_path, names):
    for part in names:
        numbered(tmp_path / part, a=4, b=4)
    splits = split(tmp_path)
    assert splits.train.classes == ("a", "b") and len(splits.train) == 6 and len(splits.val) == 2
    assert all(path.startswith(f"{names[0]}/") for path in splits.train.paths + splits.val.paths)
    assert (0 if splits.test is None else len(splits.test)) == (8 if len(names) > 1 else 0)
    if len(names) > 1:
        assert splits.how.endswith(f"; {names[1]}/ as given")
        numbered(tmp_path / names[1], c=1)
        with pytest.raises(DataError, match="differ in 'c'"):
            split(tmp_path)


@pytest.mark.parametrize("given", ["train", "train val"])
def test_a_test_split_without_classes_is_left_out(tmp_path, given):
    for part in given.split():
        numbered(tmp_path / part, a=4, b=4)
    touch(tmp_path / "test", "unknown-0.png")
    splits = split(tmp_path)
    assert splits.test is None and splits.train.classes == ("a", "b")
    assert splits.how.endswith("; test/ has no class folders and is left out")


def test_of_two_folders_for_a_split_the_one_with_classes_counts(tmp_path):
    numbered(tmp_path / "training", a=4, b=4)
    numbered(tmp_path / "val", a=4, b=4)
    touch(tmp_path / "train", "all.csv")
    assert split(tmp_path).train.paths[0].startswith("training/")


def test_out_may_lie_beside_splits_only_where_it_changes_nothing(tmp_path):
    data = tmp_path / "d"
    numbered(data / "train", a=4, b=4)
    with pytest.raises(DataError, match="lies inside"):  # train/ beside another folder is a class
        refuse_out_among_classes(data, data / "run")
    touch(data / "test", "unknown.png")
    with pytest.raises(DataError, match="lies inside"):
        refuse_out_among_classes(data, data / "run")
    numbered(data / "val", a=4, b=4)
    before = split(data).train.paths
    refuse_out_among_classes(data, data / "run")
    numbered(data / "run", checkpoints=1)
    assert split(data).train.paths == before
    with pytest.raises(DataError, match="lies inside"):
        refuse_out_among_classes(data, data / "train" / "run")


def test_what_is_evaluated_of_a_folder_with_splits(tmp_path):
    numbered(tmp_path / "alone" / "Train", a=1)
    assert eval_folder(tmp_path / "alone").name == "Train"
    numbered(tmp_path / "plain", a=1, valid=1)
    assert eval_folder(tmp_path / "plain") == tmp_path / "plain"
    numbered(tmp_path / "parts" / "train", a=1)
    numbered(tmp_path / "parts" / "Test", a=1)
    assert eval_folder(tmp_path / "parts").name == "Test"
    numbered(tmp_path / "parts" / "valid", a=1)
    assert eval_folder(tmp_path / "parts").name == "valid"


def test_a_class_may_be_called_train(tmp_path):
    assert split(numbered(tmp_path / "vehicles", bus=4, train=4)).train.classes == ("bus", "train")
    assert split(numbered(tmp_path / "nouns", test=4, train=4)).train.classes == ("test", "train")


@pytest.mark.parametrize("how", ["stratified", "blocks"])
@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5])
def test_a_share_that_leaves_one_side_empty_is_refused(tmp_path, how, fraction):
    with pytest.raises(DataError, match=r"data\.val_fraction is .*more than 0 and less than 1"):
        split(numbered(tmp_path, a=4, b=4), how, fraction)


def test_a_class_folder_without_images_is_named(tmp_path):
    touch(numbered(tmp_path, a=4, b=4), "masks/notes.txt")
    with pytest.raises(DataError, match=r"'masks' .*holds no images"):
        split(tmp_path)


def test_a_folder_without_the_right_to_read(as_user):
    numbered(as_user, a=4, b=4)
    (as_user / "a").chmod(0)
    with pytest.raises(DataError, match=r"a cannot be read \(Permission denied\); check its rights"):
        split(as_user)
    as_user.chmod(0)
    for data in (as_user, as_user / "b"):
        with pytest.raises(DataError, match="cannot be read"):
            split(data)


def test_links_are_followed_but_never_round_and_round(tmp_path):
    numbered(tmp_path / "d", a=3, b=3)
    (tmp_path / "d" / "a" / "self").symlink_to(tmp_path / "d" / "a")
    (tmp_path / "d" / "a" / "itself.png").symlink_to("itself.png")
    touch(tmp_path / "elsewhere", "x.png")
    (tmp_path / "d" / "b" / "more").symlink_to(tmp_path / "elsewhere")
    images = scan(tmp_path / "d", tmp_path / "d")
    assert images.paths[:4] == ("a/itself.png", "a/shot-0.png", "a/shot-1.png", "a/shot-2.png")
    assert images.paths[4:] == ("b/more/x.png", "b/shot-0.png", "b/shot-1.png", "b/shot-2.png")


def test_fingerprint_tells_every_change(tmp_path):
    images = scan(numbered(tmp_path, a=3, b=3), tmp_path)
    seen = {images.fingerprint(), scan(tmp_path, tmp_path).fingerprint()}
    assert len(seen) == 1
    seen.add(ImageSet(tmp_path, images.paths, 1 - images.labels, images.classes).fingerprint())
    seen.add(ImageSet(tmp_path, images.paths, images.labels, ("a", "c")).fingerprint())
    seen.add(images.subset(np.arange(5)).fingerprint())
    images.file(0).write_text("x")
    seen.add(images.fingerprint())
    os.utime(images.file(0), ns=(1, 1))
    seen.add(images.fingerprint())
    assert len(seen) == 6


@pytest.mark.skipif(sys.platform != "linux", reason="only here may a name be any bytes")
def test_names_that_are_no_utf8_are_listed_and_come_back(tmp_path):
    numbered(tmp_path / "d", a=3, 猫=3)
    odd = os.fsdecode(b"caf\xe9.png")
    touch(tmp_path / "d", f"a/{odd}")
    splits = split(tmp_path / "d")
    assert splits.train.fingerprint() != splits.val.fingerprint()
    splits.write(tmp_path / "split.json")
    text = (tmp_path / "split.json").read_text(encoding="utf-8")
    listed = json.loads(text)
    assert "猫/shot-" in text and listed["how"] == splits.how
    assert set(listed["train"] + listed["val"]) == set(splits.train.paths + splits.val.paths)


def test_a_share_is_stratified_seeded_and_grows(tmp_path):
    numbered(tmp_path, cat=100, dog=20, emu=2)
    images = scan(tmp_path, tmp_path)
    tenth, third = images.keep_fraction(0.1, seed=5), images.keep_fraction(0.3, seed=5)
    assert tenth.counts().tolist() == [10, 2, 1]  # no class is lost
    assert third.counts().tolist() == [30, 6, 1]
    assert set(tenth.paths) < set(third.paths)  # what is added is added, nothing is exchanged
    assert images.keep_fraction(0.1, seed=5).paths == tenth.paths
    assert images.keep_fraction(0.1, seed=6).paths != tenth.paths
    assert list(third.paths) == [path for path in images.paths if path in set(third.paths)]
    assert images.keep_fraction(1.0, seed=5) is images
    names = [images.classes[label] for label in third.labels]
    assert names == [path.split("/")[0] for path in third.paths]


def not_read(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if "not read" in line]


def test_files_that_are_not_read_are_counted_in_one_line(tmp_path, capsys):
    touch(
        numbered(tmp_path, a=3, b=3),
        "Thumbs.db",
        "cover.jpg",
        "a/x.CR2",
        "a/y.cr2",
        "a/.DS_Store",
        "b/LICENSE",
    )
    touch(tmp_path, ".git/config", "b/deep/notes.txt", "b/deep/table.json")
    split(tmp_path)
    [line] = not_read(capsys)
    assert "9 files are not read" in line
    for kind in ("2 .cr2", "2 hidden", "1 .db", "1 .jpg outside the class folders", "1 without a suffix"):
        assert kind in line
    assert "1 .txt" in line and "1 .json" in line


def test_files_that_are_not_read_in_split_folders_are_counted_in_one_line(tmp_path, capsys):
    for part in ("train", "val", "test"):
        touch(numbered(tmp_path / part, a=3, b=3), "a/x.txt", "readme.md")
    split(tmp_path)
    [line] = not_read(capsys)
    assert "6 files are not read: 3 .md, 3 .txt" in line


def test_nothing_is_said_if_every_file_is_read(tmp_path, capsys):
    split(numbered(tmp_path, a=3, b=3))
    assert not_read(capsys) == []
    images_under(str(tmp_path))
    assert not_read(capsys) == []
    images_under(str(touch(tmp_path, "a/b.txt")))
    assert len(not_read(capsys)) == 1


def test_photographs_of_telephones_are_found(tmp_path):
    touch(numbered(tmp_path, a=1, b=1), "a/IMG_1.HEIC", "a/2.heif", "b/3.avif", "b/4.hif")
    assert len(scan(tmp_path, tmp_path)) == 6


def test_a_class_of_other_files_says_which(tmp_path):
    touch(numbered(tmp_path, a=4, b=4), "c/1.cr2", "c/2.cr2")
    with pytest.raises(DataError, match=r"'c' .*holds no images .*2 \.cr2"):
        split(tmp_path)


def test_a_tower_of_folders_that_link_to_each_other_is_searched_once(tmp_path):
    """Nine folders with a link to each other one: 9! ways through them."""
    for i in range(9):
        numbered(tmp_path / "d" / "a" / str(i), x=2)
    for i in range(9):
        for j in range(9):
            (tmp_path / "d" / "a" / str(i) / f"to-{j}").symlink_to(tmp_path / "d" / "a" / str(j))
    numbered(tmp_path / "d", b=2)
    images = scan(tmp_path / "d", tmp_path / "d")
    assert images.counts().tolist() == [18, 2] and len(set(images.paths)) == 20


def test_links_between_classes_are_not_followed(tmp_path, capsys):
    data = numbered(tmp_path / "d", a=2, b=3)
    (data / "a" / "other").symlink_to(data / "b")
    (data / "a" / "up").symlink_to(data)
    (data / "b" / "up").symlink_to(data)
    assert scan(data, data).counts().tolist() == [2, 3]
    assert "3 folders reached twice by links" in not_read(capsys)[0]
    (data / "c").symlink_to(data / "b")
    with pytest.raises(DataError, match=r"the classes 'b' and 'c' in .* are the same folder"):
        scan(data, data)


def test_a_class_may_be_a_link_to_a_folder_elsewhere(tmp_path):
    numbered(tmp_path / "elsewhere", x=3)
    numbered(tmp_path / "d", a=2)
    (tmp_path / "d" / "b").symlink_to(tmp_path / "elsewhere" / "x")
    assert scan(tmp_path / "d", tmp_path / "d").counts().tolist() == [2, 3]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_folders_of_the_system_are_not_entered(tmp_path, capsys):
    data = numbered(tmp_path / "d", a=2, b=3)
    (data / "a" / "processes").symlink_to("/proc")
    (data / "a" / "root").symlink_to("/proc/self")
    assert scan(data, data).counts().tolist() == [2, 3]
    assert "2 folders of the system" in not_read(capsys)[0]


@pytest.mark.skipif(sys.platform != "linux", reason="uses folder descriptors")
def test_a_tower_of_1500_folders_is_searched_to_a_depth(tmp_path, capsys):
    data = numbered(tmp_path / "d", a=2, b=3)
    where = os.open(data / "a", os.O_RDONLY)
    try:
        for _ in range(1500):
            os.mkdir("n", dir_fd=where)
            deeper = os.open("n", os.O_RDONLY, dir_fd=where)
            os.close(where)
            where = deeper
        os.close(os.open("lost.png", os.O_CREAT, dir_fd=where))
        assert scan(data, data).counts().tolist() == [2, 3]
        assert "1 folders too deep" in not_read(capsys)[0]
    finally:
        os.close(where)
        subprocess.run(["rm", "-rf", data / "a"], check=True)  # shutil's would recurse


def test_long_names_are_searched_to_the_length_of_a_path(tmp_path, capsys):
    data = numbered(tmp_path / "d", a=2, b=3)
    where, home = data / "a", Path.cwd()
    try:
        os.chdir(where)
        for _ in range(20):
            os.mkdir("n" * 250)
            os.chdir("n" * 250)
        assert scan(data, data).counts().tolist() == [2, 3]
        assert "1 folders too deep" in not_read(capsys)[0]
    finally:
        os.chdir(home)
        subprocess.run(["rm", "-rf", data / "a"], check=True)


def test_a_folder_of_too_many_files_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "_MAX_ENTRIES", 5)
    with pytest.raises(DataError, match="holds more than 5 files"):
        scan(numbered(tmp_path, a=9, b=2), tmp_path)


def test_images_in_deeper_folders_are_said_to_count_for_the_outer_one(tmp_path, capsys):
    data = touch(tmp_path / "data", "train/cat/1.png", "train/dog/1.png")
    scan(data / "train", data)
    assert "within the class folders" not in capsys.readouterr().err
    touch(data, "train/cat/2022/2.png")
    assert scan(data / "train", data).classes == ("cat", "dog")
    assert "such as train/cat/2022/2.png); the outer folder is the class" in capsys.readouterr().err
