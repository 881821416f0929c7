"""A saved teacher is read, or refused with a sentence, whatever happened to its files."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from deitkit.errors import DeitkitError, WeightsError
from deitkit.teachers.saved import read_card, read_teacher, save_teacher
from tests.damage import damage

from .models import timm_file
from .test_fit import fit, views

CPU = torch.device("cpu")
V01 = Path(__file__).parents[1] / "golden" / "v01"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An ensemble of a probed and a fine-tuned member."""
    folder = tmp_path_factory.mktemp("saved")
    spec = f"{timm_file(folder)},{timm_file(folder, 'test_vit')}"
    save_teacher(folder / "t", fit(spec, fit="finetune"))
    return folder / "t"


@pytest.fixture
def teacher(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "t"))


def refused(folder: Path) -> str | None:
    """The sentence with which a teacher is refused; None if it is read."""
    try:
        read_teacher(folder, device=CPU, backend="pytorch")
    except DeitkitError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", ["teacher.json", "teacher.safetensors"])
def test_a_damaged_file_is_read_or_refused_with_a_sentence(teacher, name):
    path, rng = teacher / name, random.Random(name)
    content, sentences = path.read_bytes(), []
    for _ in range(200):
        path.write_bytes(content)
        damage(path, rng)
        sentence = refused(teacher)
        if sentence is not None:
            assert "; " in sentence and "\n" not in sentence and len(sentence) < 700, sentence
            sentences.append(sentence)
    assert len(sentences) > 100
    assert sum(str(teacher) in sentence for sentence in sentences) > 100


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": 0}, r"members\[0\]\.weight is out of range"),
        ({"weight": "1"}, r'members\[0\]\.weight is "1", not a number'),
        ({"columns": [0, 0, 1]}, r"members\[0\]\.columns is out of range"),
        ({"head": "best"}, r"members\[0\]\.head is \"best\", not one of"),
        ({"map_channels": [4]}, r"members\[0\]\.map_channels is out of range"),
        ({"map_channels": [4, 4]}, "do not belong together"),
        ({"spec": "fitted:."}, r"members\[0\]\.spec is out of range"),
        ({"spec": "nothing"}, "cannot read the teacher 'nothing'"),
        ({"finetuned": False, "head": "own"}, "do not belong together"),
        ({"adjustment": [0.1, 0.2]}, "do not belong together"),
        ({"adjustment": [0.1, 0.2, None]}, r"members\[0\]\.adjustment\[2\] is null, not a number"),
        ({"extra": 1}, r"members\[0\] has an unknown entry 'extra'"),
    ],
)
def test_a_card_with_a_wrong_entry_is_refused_by_name(teacher, change, words):
    card = json.loads((teacher / "teacher.json").read_text())
    card["members"][0] |= change
    (teacher / "teacher.json").write_text(json.dumps(card))
    with pytest.raises(WeightsError, match=words):
        read_teacher(teacher, device=CPU, backend="pytorch")


@pytest.mark.parametrize(
    "change", [{"image_size": [100000, 100000]}, {"std": [0, 1, 1]}, {"crop": 1e-9}, {"mean": [0.5]}]
)
def test_a_card_with_impossible_preprocessing_is_refused_before_memory_is_used(teacher, change):
    card = json.loads((teacher / "teacher.json").read_text())
    card["members"][1]["preprocessing"] |= change
    (teacher / "teacher.json").write_text(json.dumps(card))
    [entry] = change
    with pytest.raises(WeightsError, match=rf"members\[1\]\.preprocessing\.{entry} is out of range"):
        read_card(teacher)


@pytest.mark.parametrize("name", ["teacher.json", "teacher.safetensors"])
def test_only_regular_files_are_opened(teacher, name):
    (teacher / name).unlink()
    os.mkfifo(teacher / name)  # reading it would wait for ever
    with pytest.raises(WeightsError, match="cannot be read"):
        read_teacher(teacher, device=CPU)


def test_cards_of_version_0_1_are_read_and_still_written():
    """So that 0.1 reads what is written today, and the hash of a folder of soft labels stays."""
    from deitkit.teachers.saved import _card_to_file

    for folder in ("finished/teacher", "labels/teacher"):
        saved = json.loads((V01 / folder / "teacher.json").read_text())
        assert json.loads(json.dumps(_card_to_file(read_card(V01 / folder)))) == saved


def test_the_pretrained_head_is_called_own_in_the_file(tmp_path):
    save_teacher(tmp_path / "t", fit("python:tests.teachers.models:mean_colour", fit="head"))
    [member] = json.loads((tmp_path / "t" / "teacher.json").read_text())["members"]
    assert member["head"] == "own" and read_card(tmp_path / "t").members[0].head == "pretrained"


def test_the_same_teacher_comes_back(whole):
    images = views(5)[0]
    once, again = (read_teacher(whole, device=CPU, backend="pytorch")(images) for _ in range(2))
    assert torch.equal(once.logits, again.logits)
