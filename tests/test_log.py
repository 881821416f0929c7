"""What a person who watches sees."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from deitkit import log
from deitkit.data.image_set import ImageSet
from deitkit.data.splits import Splits
from deitkit.tasks import SCORES
from deitkit.training.callbacks import EpochLines
from deitkit.training.session import describe_images


@pytest.fixture
def terminal(monkeypatch) -> io.StringIO:
    file = io.StringIO()
    monkeypatch.setattr(log, "_console", Console(file=file, force_terminal=True, width=100))
    return file


def test_bars_may_be_nested(terminal):
    with log.activity("looking"), log.progress_bar("decoding", 2) as advance:
        advance(1)
        log.info("a line")
    with log.activity("looking again"):
        pass
    text = terminal.getvalue()
    assert all(words in text for words in ("looking", "decoding", "a line", "looking again"))


def test_a_bar_is_gone_after_an_error(terminal):
    with pytest.raises(KeyError), log.activity("looking"):
        raise KeyError
    assert log._bars is None


def test_nothing_is_drawn_into_a_file(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(log, "_console", Console(file=file))
    with log.activity("looking"), log.progress_bar("decoding", 2) as advance:
        advance(2)
    assert file.getvalue() == ""


def lines_of(name: str, caplog) -> list[str]:
    lines = EpochLines(lambda n: None, 3, SCORES["multiclass"], lambda step: not name and step < 2, name)
    caplog.set_level(logging.INFO, logger="deitkit")
    caplog.clear()
    for epoch in (1, 2, 3):
        scores = {"val": {"top1": 50.0}, "val_ema": {"top1": 60.0}} if epoch > 1 else {}
        metrics = {"epoch": epoch, "step": epoch, "train": {"loss": 2.0}, "images_per_s": 9.6} | scores
        lines.on_epoch(metrics)
    return [record.getMessage() for record in caplog.records]


def test_lines_of_epochs_say_what_their_numbers_mean(caplog):
    first, explained, second, why, third = lines_of("", caplog)
    assert first == "epoch   1/3  loss 2.000  10 images/s"
    assert "moving average" in explained
    assert second == "epoch   2/3  top-1 50.0 %, averaged 60.0 %  loss 2.000  10 images/s"
    assert "the loss has fewer parts" in why and third.startswith("epoch   3/3")


def test_lines_of_the_baseline_are_marked(caplog):
    starts = [line.partition("/3")[0] for line in lines_of("baseline", caplog)]
    assert starts == ["baseline epoch   1", "baseline epoch   2", "baseline epoch   3"]


def images(counts: dict[str, int]) -> ImageSet:
    labels = np.repeat(np.arange(len(counts)), list(counts.values()))
    return ImageSet(Path("."), tuple(map(str, range(len(labels)))), labels, tuple(counts))


def test_the_images_in_words():
    few = Splits(images({"cat": 30, "dog": 9}), images({"cat": 10, "dog": 3}), None, "as given")
    assert describe_images(few) == [
        "2 classes: cat 40, dog 12",
        "dog has 12 images only: more of them would help most (a few dozen per class)",
        "39 images to train on, 13 to validate (as given)",
    ]
    many = images({str(k): 20 + k for k in range(20)})
    first, _ = describe_images(Splits(many, many, None, "as given"))
    assert first == "20 classes: from 40 images (0) to 78 (19)"
