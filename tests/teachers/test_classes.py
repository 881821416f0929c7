"""Which outputs of a head are the classes: by name, by ImageNet's ids and names, by a file."""

from __future__ import annotations

import json

import pytest
from timm.data import ImageNetInfo

from deitkit.errors import DeitkitError
from deitkit.teachers.classes import choose_outputs, match_classes

IMAGENET = tuple(ImageNetInfo().label_names())
NAMES = tuple(ImageNetInfo().label_descriptions())
IMAGENETTE = ("n01440764", "n02102040", "n02979186")  # tench, English springer, cassette player


def test_the_same_labels_in_any_order_case_and_spelling():
    assert match_classes(("dog", "cat"), ("cat", "bird", "dog")) == (2, 0)
    assert match_classes(("Polar_Bear", "cat"), ("cat", "polar bear")) == (1, 0)
    assert match_classes(("dog", "wolf"), ("cat", "dog")) is None
    assert match_classes(("dog",), None) is None
    assert match_classes(("Dog", "cat_2"), ("dog", "Dog", "cat_2")) == (1, 2)  # two that differ by case only


def test_ids_of_wordnet_are_match_classesd():
    assert match_classes(IMAGENETTE, IMAGENET) == (0, 217, 482)
    assert match_classes(IMAGENETTE, NAMES) == (0, 217, 482)  # as transformers calls them
    assert match_classes(("n01440764", "n99999999"), IMAGENET) is None


def test_english_words_are_ids_only_where_asked():
    words = ("tench", "cassette player")
    assert match_classes(words, IMAGENET) is None
    assert choose_outputs("imagenet", words, IMAGENET, 1000, "t") == (0, 482)
    assert choose_outputs("imagenet", words, NAMES, 1000, "t") == (0, 482)
    assert choose_outputs("imagenet", ("English_springer", "n01440764"), IMAGENET, 1000, "t") == (217, 0)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("tench", "sofa bed"), "'sofa bed' is not among ImageNet's"),
        (("tench", "crane"), "'crane' is not among"),  # a bird and a machine
        (("tench", "n01440764"), "'tench' and 'n01440764' are the same output 0"),
    ],
)
def test_a_class_without_an_output_of_its_own(classes, words):
    with pytest.raises(DeitkitError, match=words):
        choose_outputs("imagenet", classes, IMAGENET, 1000, "t")


def test_a_teacher_without_imagenets_outputs():
    with pytest.raises(DeitkitError, match="outputs of the teacher t are not ImageNet's"):
        choose_outputs("imagenet", ("tench",), ("a", "b"), 2, "t")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("map.json", json.dumps({"cat": 3, "dog": 1, "other": 0})),
        ("map.csv", "cat,3\ndog,1\n"),
        ("map.csv", "class,index\ncat, 3\ndog,1\n"),
    ],
)
def test_a_file(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert choose_outputs(str(tmp_path / name), ("dog", "cat"), None, 4, "t") == (1, 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"cat": 3}', "'dog' is not in"),
        ('{"cat": 3, "dog": 4}', "'dog' is output 4 in .*, and the teacher t has 4 outputs, 0 to 3"),
        ('{"cat": 3, "dog": -1}', "'dog' is output -1"),
        ('{"cat": 3, "dog": 3}', "'cat' and 'dog' are the same output 3"),
        ('{"cat": 3, "dog": 1.5}', "cannot be read as classes"),
        ('{"cat": 3, "dog": "one"}', "cannot be read as classes"),
        ("[1, 2]", "cannot be read as classes"),
        ("no JSON", "cannot be read as classes"),
    ],
)
def test_mistakes_in_a_file(tmp_path, text, words):
    (tmp_path / "map.json").write_text(text)
    with pytest.raises(DeitkitError, match=words):
        choose_outputs(str(tmp_path / "map.json"), ("cat", "dog"), None, 4, "t")


def test_a_file_that_is_not_there():
    with pytest.raises(DeitkitError, match=r"there is no file gone\.json; teacher\.classes is imagenet"):
        choose_outputs("gone.json", ("cat",), None, 4, "t")
