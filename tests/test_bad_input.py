"""Every mistake a user can make ends in one sentence and status 2, without a traceback."""

from __future__ import annotations

import errno
import json
import os
import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from deitkit.classifier import load
from deitkit.cli import main as command_line
from deitkit.data.decode import UnreadableImage

from .conftest import TINY, write_images


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs the command line, which must refuse; returns its one sentence."""
    with pytest.raises(SystemExit) as stop:
        command_line([str(a) for a in arguments])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    [sentence] = [line for line in error.splitlines() if line.startswith("deitkit: ")]
    return sentence


def main(arguments: list[str]) -> None:
    """Runs a command line that must succeed."""
    with pytest.raises(SystemExit) as stop:
        command_line(arguments)
    assert stop.value.code == 0


def train(capsys: pytest.CaptureFixture[str], data: Path, out: Path, *more: str) -> str:
    return refusal(capsys, "train", data, "--out", out, *TINY, *more)


def huge_png() -> bytes:
    """A PNG whose header claims 50,000 x 50,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_missing_folder(tmp_path, capsys):
    assert "there is no folder" in train(capsys, tmp_path / "none", tmp_path / "run")


def test_file_for_a_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert "is a file" in train(capsys, tmp_path / "file", tmp_path / "run")


def test_empty_folder(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "no class folders" in train(capsys, tmp_path / "empty", tmp_path / "run")


def test_images_without_classes(tmp_path, capsys):
    write_images(tmp_path / "data", ("only",))
    assert "no class folders" in train(capsys, tmp_path / "data" / "only", tmp_path / "run")


def test_one_class(tmp_path, capsys):
    assert "only one class, 'only'" in train(
        capsys, write_images(tmp_path / "d", ("only",)), tmp_path / "run"
    )


def test_class_with_one_image(tmp_path, capsys):
    data = write_images(tmp_path / "d")
    write_images(data, ("bird",), count=1)
    assert "'bird'" in train(capsys, data, tmp_path / "run")


def test_folder_of_other_files(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / "d" / name).mkdir(parents=True)
        (tmp_path / "d" / name / "notes.txt").write_text("x")
    assert "no images" in train(capsys, tmp_path / "d", tmp_path / "run")


def test_classes_that_differ_by_case(tmp_path, capsys):
    data = write_images(tmp_path / "d", ("Cat", "cat"))
    assert "differ only by case" in train(capsys, data, tmp_path / "run")


def test_parts_with_different_classes(tmp_path, capsys):
    write_images(tmp_path / "d" / "train", ("cat", "dog"))
    write_images(tmp_path / "d" / "val", ("cat", "bird"))
    sentence = train(capsys, tmp_path / "d", tmp_path / "run")
    assert "'bird'" in sentence and "'dog'" in sentence


def test_out_among_the_classes(tmp_path, capsys):
    data = write_images(tmp_path / "d")
    assert "lies inside" in train(capsys, data, data / "run")
    assert "lies inside" in train(capsys, data, data / "cat" / "run")


@pytest.mark.parametrize("split", ["stratified", "blocks"])
def test_nothing_held_out(image_folder, tmp_path, capsys, split):
    more = ["--set", "data.val_fraction=0", "--set", f"data.split={split}"]
    assert "data.val_fraction is 0" in train(capsys, image_folder, tmp_path / "run", *more)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """What `train` imports at its first use has been, while root can still read it."""
    folder = tmp_path_factory.mktemp("imported")
    main(["train", str(write_images(folder / "d")), "--out", str(folder / "run"), *TINY])


def test_folder_without_the_right_to_read(imported, as_user, capsys):
    data = write_images(as_user / "d")
    (data / "cat").chmod(0)
    sentence = train(capsys, data, as_user / "run")
    assert "cannot be read" in sentence and "check its rights" in sentence


def test_files_without_the_right_to_read(imported, as_user, capsys, monkeypatch):
    monkeypatch.setenv("DEITKIT_CACHE", str(as_user / "cache"))
    data = write_images(as_user / "d")
    for i in range(4):
        (data / "cat" / f"{i}.png").chmod(0)
    assert "0.png (no right to read the file)" in train(capsys, data, as_user / "run")


def test_output_without_the_right_to_write(imported, as_user, capsys, monkeypatch):
    monkeypatch.setenv("DEITKIT_CACHE", str(as_user / "cache"))
    data = write_images(as_user / "d")
    (as_user / "locked").mkdir(mode=0o500)
    assert "cannot write" in train(capsys, data, as_user / "locked" / "run")


def test_cache_without_the_right_to_write(imported, as_user, capsys, monkeypatch):
    (as_user / "locked").mkdir(mode=0o500)
    monkeypatch.setenv("DEITKIT_CACHE", str(as_user / "locked" / "cache"))
    assert "DEITKIT_CACHE" in train(capsys, write_images(as_user / "d"), as_user / "run")


def test_links_to_nowhere_are_listed(tmp_path):
    data = write_images(tmp_path / "d", ("cat", "dog"), count=60, side=8)
    (data / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    main(["train", str(data), "--out", str(tmp_path / "run"), *TINY, "--epochs=1", "--batch-size=64"])
    [skipped] = json.loads((tmp_path / "run" / "skipped.json").read_text())
    assert skipped["path"].endswith("gone.png") and skipped["reason"] == "the file is not there"


def broken_files(folder: Path) -> dict[str, str]:
    """Four broken images and a word of each one's reason."""
    whole = (folder / "0.png").read_bytes()
    (folder / "zero.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no image")
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "huge.png").write_bytes(huge_png())
    return {"zero.png": "not an image", "text.jpg": "not an image", "cut.png": "broken", "huge.png": "too"}


def test_many_unreadable_images_are_refused(image_folder, tmp_path, capsys):
    broken_files(image_folder / "cat")
    sentence = train(capsys, image_folder, tmp_path / "run")
    assert "cannot be read" in sentence and "4 of 28 images" in sentence and "more than 5 %" in sentence
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_three_unreadable_images_of_78_are_skipped_and_listed(tmp_path, capsys):
    data = write_images(tmp_path / "d", ("cat", "dog"), count=39, side=8)
    for i in range(3):
        (data / "cat" / f"{i}.png").write_bytes(b"")
    main(["train", str(data), "--out", str(tmp_path / "run"), *TINY, "--epochs=1", "--batch-size=64"])
    assert len(json.loads((tmp_path / "run" / "skipped.json").read_text())) == 3
    assert "warning: 3 of 78 images skipped, unreadable:" in capsys.readouterr().err


def test_max_broken_allows_more_and_none(tmp_path, capsys):
    data = write_images(tmp_path / "d", ("cat", "dog"), count=20, side=8)
    for i in range(4):
        (data / "cat" / f"{i}.png").write_bytes(b"")
    refused = train(capsys, data, tmp_path / "run")
    assert "4 of 40 images" in refused and "allow more with --max-broken" in refused
    main(["train", str(data), "--out", str(tmp_path / "run"), *TINY, "--epochs=1", "--max-broken=0.1"])
    assert len(json.loads((tmp_path / "run" / "skipped.json").read_text())) == 4
    (data / "cat" / "0.png").write_bytes((data / "dog" / "0.png").read_bytes())
    for i in range(1, 3):
        (data / "cat" / f"{i}.png").unlink()
    assert "1 of 38 images" in train(capsys, data, tmp_path / "none", "--max-broken=0")


def test_a_class_without_a_readable_image(tmp_path, capsys):
    data = write_images(tmp_path / "d", ("cat", "dog"), count=60, side=8)
    for i in range(57):
        (data / "cat" / f"{i}.png").unlink()
    for i in range(57, 60):
        (data / "cat" / f"{i}.png").write_bytes(b"")
    refused = train(capsys, data, tmp_path / "run")
    assert "no training image of class 'cat' can be read (3 files are unreadable" in refused


def test_max_pixels_of_training_and_of_its_classifier(tmp_path):
    data = write_images(tmp_path / "d", ("cat", "dog"), count=20, side=24)
    for i in range(3):
        Image.new("RGB", (40, 40)).save(data / "cat" / f"{i}.png")
    limit = "data.max_pixels=1000"
    main(["train", str(data), "--out", str(tmp_path / "run"), *TINY, "--epochs=1", "--set", limit])
    skipped = json.loads((tmp_path / "run" / "skipped.json").read_text())
    assert [entry["reason"] for entry in skipped] == 3 * ["too large: 40 x 40 pixels, of at most 1,000"]
    with pytest.raises(UnreadableImage, match="too large: 40 x 40 pixels, of at most 1,000"):
        load(tmp_path / "run").predict(data / "cat" / "0.png")


def test_one_unreadable_image_in_a_hundred_and_twenty_is_no_reason_to_stop(tmp_path):
    data = write_images(tmp_path / "d", ("cat", "dog"), count=60, side=8)
    (data / "cat" / "0.png").write_bytes(b"")
    main(["train", str(data), "--out", str(tmp_path / "run"), *TINY, "--epochs=1", "--batch-size=64"])
    assert len(json.loads((tmp_path / "run" / "skipped.json").read_text())) == 1


def test_a_refused_folder_can_be_used_again(image_folder, tmp_path, capsys):
    whole = [(image_folder / "cat" / f"{i}.png").read_bytes() for i in range(4)]
    for i in range(4):
        (image_folder / "cat" / f"{i}.png").write_bytes(b"")
    assert "cannot be read" in train(capsys, image_folder, tmp_path / "run")
    for i in range(4):
        (image_folder / "cat" / f"{i}.png").write_bytes(whole[i])
    main(["train", str(image_folder), "--out", str(tmp_path / "run"), *TINY, "--epochs=1", "--seed=3"])
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["train"]["seed"] == 3


def test_a_misspelt_teacher_leaves_no_folder(image_folder, tmp_path, capsys):
    train(capsys, image_folder, tmp_path / "run", "--teacher=timm:resnet81")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["zero.png", "text.jpg", "cut.png", "huge.png"])
def test_few_unreadable_images_are_listed(tmp_path, name, capsys):
    data = write_images(tmp_path / "d", ("cat", "dog"), count=140, side=8)
    reason = broken_files(data / "cat")[name]
    for other in {"zero.png", "text.jpg", "cut.png", "huge.png"} - {name}:
        (data / "cat" / other).unlink()
    main(["train", str(data), "--out", str(tmp_path / "run"), *TINY, "--epochs=1", "--batch-size=128"])
    [skipped] = json.loads((tmp_path / "run" / "skipped.json").read_text())
    assert skipped["path"].endswith(name) and reason in skipped["reason"]


def test_odd_names_train_and_predict(tmp_path, capsys):
    classes = ("a b", 'it\'s "so"', "猫", "$x_1$ & <b>")
    data = write_images(tmp_path / "data with space", classes)
    main(["train", str(data), "--out", str(tmp_path / "run ü"), *TINY])
    assert ">猫</text>" in (tmp_path / "run ü" / "report.html").read_text(encoding="utf-8")
    capsys.readouterr()
    main(["predict", str(tmp_path / "run ü"), str(data / "猫" / "0.png"), "--json"])
    [row] = json.loads(capsys.readouterr().out)
    assert row["label"] in classes


def test_output_under_a_file(image_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert "cannot write" in train(capsys, image_folder, tmp_path / "file" / "run")


def test_output_in_a_foreign_folder(image_folder, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    assert "not empty" in train(capsys, image_folder, tmp_path / "mine")
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep"


def test_full_disk_while_decoding(image_folder, tmp_path, capsys, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    assert "DEITKIT_CACHE" in train(capsys, image_folder, tmp_path / "run")


def test_full_disk_at_a_checkpoint(image_folder, tmp_path, capsys, monkeypatch):
    from deitkit import io as files

    calls = []

    def full(tensors, path, metadata):
        calls.append(path)
        if len(calls) == 2:  # word for word what a full disk gives
            path.write_bytes(b"a part of it")
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        real(tensors, path, metadata)

    real = files.save_file
    monkeypatch.setattr(files, "save_file", full)
    assert "No space left" in train(capsys, image_folder, tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoints").glob("*.part"))
    monkeypatch.setattr(files, "save_file", real)
    main(["train", str(image_folder), "--out", str(tmp_path / "run"), *TINY, "--resume"])
    assert (tmp_path / "run" / "report.html").exists()


def test_a_write_past_a_limit_is_an_os_error(tmp_path):
    resource = pytest.importorskip("resource")
    from deitkit.io import write_tensors

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG and not list(tmp_path.iterdir())


@pytest.fixture
def finished(image_folder, tmp_path):
    main(["train", str(image_folder), "--out", str(tmp_path / "run"), *TINY])
    return tmp_path / "run"


def test_run_is_not_overwritten(finished, image_folder, capsys):
    assert "already holds a run" in train(capsys, image_folder, finished)


def test_resume_with_other_settings(finished, image_folder, capsys):
    assert "train.seed was 0 and is now 5" in train(capsys, image_folder, finished, "--resume", "--seed=5")


def test_cut_checkpoint_is_passed_over(finished, image_folder, capsys):
    before = (finished / "model.safetensors").read_bytes()
    newest = sorted((finished / "checkpoints").glob("*.safetensors"))[-1]
    newest.write_bytes(newest.read_bytes()[:5000])
    main(["train", str(image_folder), "--out", str(finished), *TINY, "--resume"])
    assert (finished / "model.safetensors").read_bytes() == before


def test_all_checkpoints_cut(finished, image_folder, capsys):
    for path in (finished / "checkpoints").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:5000])
    assert "no checkpoint" in train(capsys, image_folder, finished, "--resume")


def test_cut_model(finished, image_folder, capsys):
    (finished / "model.safetensors").write_bytes(b"half")
    assert "cannot be read" in refusal(capsys, "predict", finished, image_folder)
    assert "there is no folder" in refusal(capsys, "predict", finished / "no-run", image_folder)


def test_unreadable_image_in_predict(finished, image_folder, capsys):
    (image_folder / "bad.png").write_bytes(b"")
    with pytest.raises(SystemExit) as stop:
        command_line(
            [
                "predict",
                str(finished),
                str(image_folder / "bad.png"),
                str(image_folder / "cat" / "0.png"),
                "--json",
            ]
        )
    assert stop.value.code == 1
    bad, good = json.loads(capsys.readouterr().out)
    assert "not an image" in bad["error"] and good["label"] in ("cat", "dog")


def test_eval_with_an_unknown_class(finished, tmp_path, capsys):
    data = write_images(tmp_path / "other", ("cat", "zebra"))
    assert "'zebra'" in refusal(capsys, "eval", finished, data)


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--set", "optim.lrr=1"], "did you mean 'optim.lr'"),
        (["--set", "optim.epochs=1"], "did you mean 'train.epochs'"),
        (["--set", "optim.learning_rate=1"], "the section optim has name, lr, "),
        (["--set", "epochz=1"], "did you mean 'train.epochs'"),
        (["--set", "zzz.q=1"], "there is no setting 'zzz.q'"),
        (["--set", "optim.lr=fast"], "cannot be 'fast'"),
        (["--set", "optim.lr"], "has no value"),
        (["--recipe", "deit", "--teacher=timm:resnet18"], "distillation is off"),
        (["--recipe", "small-dta"], "did you mean 'small-data'"),
        (["--teacher", "timm:resnet81"], "did you mean"),
        (["--teacher", "oracle"], "cannot read the teacher"),
        (["--student", "huge"], "there is no student"),
        (["--image-size", "17"], "not a multiple"),
        (["--device", "abacus"], "there is no device"),
        (["--budget", "soon"], "give one of them"),
        (["--set", "optim.warmup_epochs=many"], "cannot be 'many': give a"),
        (["--distillation", "medium"], "cannot be 'medium'"),
        (["--metric", "accuracy"], "cannot be 'accuracy'"),
        (["--metric", "map"], "train.metric map is for multilabel images"),
        (["--set", "train.balance=weights"], "cannot be 'weights'"),
        (["--set", "train.balance=loss", "--set", "train.loss=bce"], "adjusts the logits of a softmax"),
        (["--group-by", "("], "is no regular expression"),
        (["--group-by", "patient"], "no table with such a column"),
        (["--relabel", "gone.csv"], "gone.csv cannot be read: there is no such file"),
        (["--exclude", "gone.csv"], "gone.csv cannot be read: there is no such file"),
        (["--relabel", ""], "the path of a CSV file, and one is empty"),
    ],
)
def test_wrong_settings(image_folder, tmp_path, capsys, more, word):
    assert word in train(capsys, image_folder, tmp_path / "run", *more)


@pytest.mark.parametrize("budget", ["soon", "3", "0m", "-3m"])
def test_invalid_duration(image_folder, tmp_path, capsys, budget):
    sentence = refusal(capsys, "train", image_folder, "--out", tmp_path / "run", f"--budget={budget}")
    assert "invalid duration" in sentence


def test_not_finite_loss_names_the_files(image_folder, tmp_path, capsys):
    sentence = train(capsys, image_folder, tmp_path / "run", "--set", "optim.lr=1e30", "--epochs=20")
    assert "not a finite number" in sentence
    listed = json.loads((tmp_path / "run" / "not-finite.json").read_text())
    assert all((image_folder / name).exists() for name in listed)


def test_images_of_every_kind(finished, tmp_path, capsys):
    folder = tmp_path / "kinds"
    folder.mkdir()
    rgb = Image.new("RGB", (30, 20), (200, 30, 30))
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("L").save(folder / "grey.png")
    Image.new("I;16", (30, 20), 40_000).save(folder / "deep.png")
    rgb.convert("P").save(folder / "palette.gif")
    Image.new("RGBA", (30, 20), (200, 30, 30, 90)).save(folder / "alpha.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    rgb.save(folder / "turned.jpg", exif=turned)
    main(["predict", str(finished), str(folder), "--csv"])
    assert len(capsys.readouterr().out.splitlines()) == 7


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
@pytest.mark.parametrize("verb", ["train", "check"])
def test_a_folder_where_there_can_be_none(tmp_path, capsys, verb):
    write_images(tmp_path / "images")
    more = TINY if verb == "train" else []
    with pytest.raises(SystemExit) as ended:
        command_line([verb, str(tmp_path / "images"), "--out", "/proc/nope", *more])
    assert ended.value.code == 2
    assert "the folder /proc/nope cannot be created" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--csv", "--html"])
def test_a_file_where_there_can_be_none(finished, tmp_path, capsys, option):
    """Found out before the measuring, and nothing is left behind."""
    write_images(tmp_path / "images")

    def refused(file: str) -> str:
        with pytest.raises(SystemExit) as ended:
            command_line(["eval", str(finished), str(tmp_path / "images"), option, file])
        assert ended.value.code == 2
        return capsys.readouterr().err

    assert "is a folder; give the name of a file" in refused(str(tmp_path))
    if Path("/proc/self").exists():
        assert "/proc/nope.csv cannot be created" in refused("/proc/nope.csv")
    (tmp_path / "images" / "a-file").write_text("")
    assert refused(str(tmp_path / "images" / "a-file" / "x.csv"))
    with pytest.raises(SystemExit):
        command_line(
            ["eval", str(tmp_path / "missing"), str(tmp_path / "images"), option, str(tmp_path / "new")]
        )
    assert not (tmp_path / "new").exists()
