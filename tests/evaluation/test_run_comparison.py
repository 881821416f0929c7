"""Runs against each other: paired on the images that both were validated on, and told in sentences."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from deitkit.cli import main
from deitkit.errors import DeitkitError
from deitkit.evaluation.comparison import paired_difference
from deitkit.evaluation.run_comparison import compare_runs
from deitkit.run_folder import read_results

from ..conftest import write_random_run

CLASSES = ("cat", "dog")
METRICS = [
    {"epoch": 1, "step": 2, "train": {"loss": 2.0}, "val": {"top1": 50.0}, "val_ema": {"top1": 55.0}},
    {"epoch": 2, "step": 4, "train": {"loss": 1.0}, "val": {"top1": 60.0}, "val_ema": {"top1": 65.0}},
]


def write_run(
    folder: Path, images: Path, right: list[bool], *, seed: int = 0, root: str | None = None
) -> Path:
    """A finished run whose student is right about some of its validation images, half of them cats."""
    write_random_run(folder, images, CLASSES)
    saved = json.loads((folder / "config.json").read_text())
    saved["config"]["train"]["seed"] = seed
    saved["data"] = {
        "root": root or str(images),
        "train": 30,
        "val": len(right),
        "how": "h",
        "fingerprint": root or "f",
    }
    (folder / "config.json").write_text(json.dumps(saved))
    score = 100 * sum(right) / len(right)
    student = {
        "name": "nano",
        "top1": score,
        "interval": [score - 5, score + 5],
        "balanced_accuracy": score,
        "balanced_interval": [score - 5, score + 5],
        "params": 1_000_000,
        "images_per_s": 900.0,
    }
    results = {
        "student": student,
        "train": {"seconds": 60.0, "images_per_s": 9.0, "epochs": 2},
        "val": {"images": len(right)},
        "weights": "ema",
        "recommended": "student",
        "verdict": "Deploy the student.",
        "machine": "m",
        "date": "2026-01-01",
        "confusion": [[len(right) // 2, 0], [0, len(right) // 2]],
    }
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in METRICS))
    with open(folder / "predictions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "prediction", "probability", "teacher_prediction"])
        for i, is_right in enumerate(right):
            label = CLASSES[i % 2]
            writer.writerow([f"{i}.png", label, label if is_right else CLASSES[1 - i % 2], "0.9", ""])
    return folder


@pytest.fixture
def runs(tmp_path, image_folder) -> list[Path]:
    (tmp_path / "runs").mkdir()
    worse, better = [i % 4 != 0 for i in range(80)], [i % 20 != 0 for i in range(80)]
    return [
        write_run(tmp_path / "runs" / "a", image_folder, worse),
        write_run(tmp_path / "runs" / "b", image_folder, better, seed=1),
    ]


def test_the_difference_is_paired_image_by_image(runs):
    found = compare_runs(runs)
    [against] = found.against
    a, b = (torch.tensor([i % n != 0 for i in range(80)]) for n in (4, 20))
    value, (low, _) = paired_difference(b, a)
    assert found.metric == "top1" and against.difference.images == 80
    assert (against.difference.value, against.difference.low) == (pytest.approx(value), pytest.approx(low))
    assert against.difference.decided and "b is better than a by 20.0 points of top-1" in found.sentences()[0]
    assert found.settings == (("train.seed", (0, 1)),)
    swapped = compare_runs(runs[::-1]).against[0].difference
    assert swapped.value == pytest.approx(-value) and swapped.high == pytest.approx(-low)


def test_too_few_images_are_told(runs, tmp_path, image_folder):
    other = write_run(tmp_path / "c", image_folder, [i % 4 != 1 or i == 1 for i in range(80)])
    [sentence] = compare_runs([runs[0], other]).sentences()
    assert (
        "80 validation images do not tell c from a" in sentence
        and "would, if the difference stays" in sentence
    )


def test_only_images_of_both_runs_are_compared(runs, tmp_path, image_folder):
    part = write_run(tmp_path / "c", image_folder, [True] * 30)
    [against] = compare_runs([runs[0], part]).against
    assert against.difference.images == 30
    elsewhere = write_run(tmp_path / "d", image_folder, [True] * 30, root="/other")
    found = compare_runs([runs[0], elsewhere])
    assert found.against[0].difference is None and "no validation image in common" in found.sentences()[0]


def test_names_tell_the_runs_apart(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "more" / "a")
    assert [run.name for run in compare_runs([runs[0], tmp_path / "more" / "a"]).runs] == ["runs/a", "more/a"]


def succeed(*arguments: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert not end.value.code


def test_the_page_stands_alone_and_escapes_names(runs, tmp_path, capsys):
    strange = runs[1].rename(runs[1].with_name("<b>b"))
    succeed("report", str(runs[0]), str(strange), "--out", str(tmp_path / "page.html"))
    said = capsys.readouterr().out
    assert "is better than a by 20.0 points" in said and "page: " in said
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;b is better than a" in page and "<b>b is" not in page and "<script" not in page
    assert "train<wbr>.seed" in page and page.count("<svg") == 3 and 'src="http' not in page
    succeed("report", str(runs[0]), str(strange), "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["against_the_first"][0]["difference"]["value"] == 20.0
    assert found["settings"] == [{"setting": "train.seed", "values": [0, 1]}]


def test_a_single_run_gets_its_own_report_again(runs, capsys):
    (runs[0] / "skipped.json").write_text("[]")
    succeed("report", str(runs[0]))
    assert (runs[0] / "report.html").exists() and "report.html" in capsys.readouterr().out
    assert read_results(runs[0]).verdict in (runs[0] / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{a}", "{b}"], "give --out comparison.html"),
        (["{a}", "{b}", "--out=page.pdf"], "ends in .html"),
        (["{a}", "--json"], "are for several runs"),
        (["{a}", "{b}", "--json", "--model=teacher"], "has no model 'teacher'"),
        (["{a}", "{a}/..", "--json"], "no finished run"),
    ],
)
def test_mistakes_end_in_one_sentence(runs, arguments, sentence, capsys):
    given = [argument.format(a=runs[0], b=runs[1]) for argument in arguments]
    with pytest.raises(SystemExit) as end:
        main(["report", *given])
    assert end.value.code == 2 and sentence in capsys.readouterr().err


def test_runs_of_different_tasks_are_refused(runs):
    results = json.loads((runs[1] / "results.json").read_text()) | {"task": "multilabel"}
    results["student"] |= {"map": 50.0}
    (runs[1] / "results.json").write_text(json.dumps(results))
    with pytest.raises(DeitkitError, match="compare like runs"):
        compare_runs(runs)
