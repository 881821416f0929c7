"""Images that belong together are on one side of the split; without any, the split is what it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deitkit.config import Config, DataConfig
from deitkit.data.groups import Spared, hold_out_groups, keep_on_one_side, known_groups, spared
from deitkit.data.image_set import ImageSet
from deitkit.data.near_duplicates import duplicates_of
from deitkit.data.splits import Splits, load_splits
from deitkit.data.survey import effect_sentence, leak_warning, survey, with_effect
from deitkit.errors import DataError, SettingError
from deitkit.run_schema import DuplicateCounts

from .test_near_duplicates import jpeg, write_scenes

AUTO = DataConfig(group="auto")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_scenes(tmp_path, "p{four}-{i:02}.png")


def with_copies(folder: Path, splits: Splits) -> list[str]:
    """Saves two training images and one of validation again; returns the originals."""
    chosen = [*splits.train.paths[:2], splits.val.paths[-1]]
    for k, path in enumerate(chosen):
        jpeg(Image.open(folder / path), 70).save(folder / path.split("/")[0] / f"z{k}-again.jpg")
    return chosen


def sides(splits: Splits) -> dict[str, str]:
    of = {path: "train" for path in splits.train.paths}
    return of | {path: "val" for path in splits.val.paths}


def test_without_duplicates_auto_changes_nothing(folder):
    plain, auto = load_splits(folder, DataConfig()), load_splits(folder, AUTO)
    assert (plain.train.paths, plain.val.paths, plain.how) == (auto.train.paths, auto.val.paths, auto.how)


def test_auto_moves_only_duplicates_and_counts_them(folder):
    originals = with_copies(folder, load_splits(folder, DataConfig()))
    plain, auto = load_splits(folder, DataConfig()), load_splits(folder, AUTO)
    before, after = sides(plain), sides(auto)
    moved = [path for path in before if before[path] != after[path]]
    assert all(path in originals or "again" in path for path in moved)
    for k, path in enumerate(originals):
        assert after[path] == after[f"{path.split('/')[0]}/z{k}-again.jpg"]
    assert auto.how == (
        plain.how + f"; {len(moved)} moved to the side of their near-duplicates" * bool(moved)
    )
    assert auto.duplicates == duplicates_of(auto.everything, AUTO)  # found once, before the split
    assert auto.duplicates.near and len(survey(auto, auto.duplicates).leaking) == 0
    assert auto.spared is not None and auto.spared.moved == len(moved)
    counts = survey(auto, auto.duplicates).counts()
    assert (counts.moved, counts.spared) == (len(moved), auto.spared.images)


def test_what_duplicates_do_to_an_accuracy_is_said():
    counts = DuplicateCounts(groups=2, images=4, exact=0, conflicting=0, leaking_val=2, leaking_test=0)
    right = np.array([True, True, True, False, False])
    found = with_effect(counts, right, np.array([True, True, False, False, False]))
    assert (found.top1_leaking, found.top1_others) == pytest.approx((100, 100 / 3))
    assert "right on 100.0 % of the 2 validation images" in effect_sentence(found)
    # Two of five would have been remembered, one of them with another label.
    spared_ones = replace(counts, leaking_val=0, spared=2, spared_same_label=1)
    found = with_effect(spared_ones, right, np.zeros(5, bool))
    assert found.top1_leaking is None and found.top1_pretended == pytest.approx((60 * 3 + 100) / 5)
    assert "2 validation images would have" in effect_sentence(found) and "56.0 %" in effect_sentence(found)
    assert effect_sentence(with_effect(replace(counts, leaking_val=0), right, np.zeros(5, bool))) is None


def test_leaks_are_counted(folder):
    splits = load_splits(folder, DataConfig())
    path = splits.train.paths[0]
    jpeg(Image.open(folder / path), 70).save(folder / "a" / "copy.jpg")
    images = load_splits(folder, DataConfig()).everything
    index = {path: i for i, path in enumerate(images.paths)}
    val = [i for path, i in index.items() if path in (*splits.val.paths, "a/copy.jpg")]
    train = np.setdiff1d(np.arange(len(images)), val)
    leaking = Splits(images.subset(train), images.subset(np.array(val)), None, "")
    found = survey(leaking, duplicates_of(leaking.everything, DataConfig()))
    assert [found.images.paths[i] for i in found.leaking] == ["a/copy.jpg"]
    counts = found.counts()
    assert (counts.groups, counts.images, counts.exact, counts.leaking_val) == (1, 2, 0, 1)
    sentence = leak_warning(counts, 11, held_out=True)
    assert sentence is not None and "1 of 11 validation images" in sentence and "--group-by auto" in sentence
    assert "--group-by" not in (leak_warning(counts, 11, held_out=False) or "")


@pytest.mark.parametrize("seed", range(3))
def test_groups_of_a_name_are_whole(folder, seed):
    splits = load_splits(folder, DataConfig(group=r"^p(\d+)-", split_seed=seed))
    people = [{path.split("/")[1][:2] for path in images.paths} for images in (splits.train, splits.val)]
    assert not people[0] & people[1]
    assert splits.val.counts().tolist() == [4, 4]  # a fifth of the people is nearest to a quarter
    assert "groups by" in splits.how


def test_groups_of_folders(tmp_path):
    for name in ("cat", "dog"):
        for day in ("monday", "tuesday", "friday", "sunday"):
            (tmp_path / name / day).mkdir(parents=True)
            for i in range(3):
                (tmp_path / name / day / f"{i}.png").touch()
        (tmp_path / name / "loose.png").touch()
    splits = load_splits(tmp_path, DataConfig(group="folder"))
    days = [
        {Path(path).parent.name for path in images.paths} - {"cat", "dog"}
        for images in (splits.train, splits.val)
    ]
    assert not days[0] & days[1] and len(days[0] | days[1]) == 4


def test_groups_of_a_column(tmp_path):
    lines = ["path,label,Patient"]
    for i in range(24):
        (tmp_path / f"{i}.png").touch()
        lines.append(f"{i}.png,{'ab'[i % 2]},{i // 4 if i < 20 else ''}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    splits = load_splits(tmp_path, DataConfig(group="patient"))
    patients = [{int(path[:-4]) // 4 for path in images.paths} - {5} for images in (splits.train, splits.val)]
    assert not patients[0] & patients[1] and splits.val.counts().min() > 0


def test_groups_of_multilabel_images():
    rng = np.random.RandomState(0)
    labels = rng.rand(200, 3) < 0.3
    images = ImageSet(Path("."), tuple(f"{i // 5}-{i}.png" for i in range(200)), labels, ("x", "y", "z"))
    groups = known_groups(images, r"^(\d+)-")
    held = hold_out_groups(images, groups, 0.25, seed=0)
    assert all(len(set(held[groups == g])) == 1 for g in range(40))
    assert np.allclose(labels[held].sum(0) / labels.sum(0), 0.25, atol=0.08)


def test_a_group_goes_to_the_side_of_most_of_its_images():
    held, groups = np.array([True, True, False, True, False, False]), np.array([0, 0, 0, 1, 1, 2])
    kept = keep_on_one_side(held, groups)
    assert kept.tolist() == [True, True, True, False, False, False]
    labels = np.array([0, 1, 0, 1, 1, 1])
    images = ImageSet(Path("."), tuple("abcdef"), labels, ("x", "y"))
    # Before, a, b and d were held out and had a twin in training; b's has another label.
    assert spared(images, held, kept, groups) == Spared(moved=2, images=3, same_label=2)


def test_one_group_cannot_be_divided(folder):
    with pytest.raises(DataError, match="with whole groups"):
        load_splits(folder, DataConfig(group=r"(p)"))


@pytest.mark.parametrize("rule", [r"day(\d)", r"^(x)?p"])
def test_a_name_that_does_not_match(folder, rule):
    with pytest.raises(DataError, match=r"does not match the file name of a/p0-00\.png"):
        load_splits(folder, DataConfig(group=rule))


def test_a_column_without_a_table(folder):
    with pytest.raises(DataError, match="no table with such a column"):
        load_splits(folder, DataConfig(group="patient"))


def test_a_column_that_the_table_lacks(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").touch()
    (tmp_path / "labels.csv").write_text("path,label\n0.png,a\n1.png,a\n2.png,b\n3.png,b\n")
    with pytest.raises(DataError, match="has no column 'patient'"):
        load_splits(tmp_path, DataConfig(group="patient"))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"data.group": "p("}, "is no regular expression"),
        ({"data.group": "(a)(b)"}, "has 2 groups"),
        ({"data.group": "(?:a)"}, "has 0 groups"),
        ({"data.group": "folder", "data.split": "blocks"}, "give one of them"),
    ],
)
def test_rules_that_cannot_be_meant(changes, problem):
    with pytest.raises(SettingError, match=problem):
        Config().override(changes).check()


def test_a_split_of_the_users_is_left_as_it_is(folder, tmp_path_factory, caplog):
    data = tmp_path_factory.mktemp("given")
    for split in ("train", "val"):
        for name in ("a", "b"):
            (data / split / name).mkdir(parents=True)
            for i in range(4):
                (data / split / name / f"p{i // 2 + (split == 'val')}-{i}.png").touch()
    plain = load_splits(data, DataConfig())
    found = load_splits(data, DataConfig(group=r"^p(\d)"))
    assert (plain.train.paths, plain.val.paths) == (found.train.paths, found.val.paths)
    assert not found.held_out and load_splits(folder, DataConfig()).held_out
    [warning] = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "4 of 8 images outside training share a group" in warning
