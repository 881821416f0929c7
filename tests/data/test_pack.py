"""Packing goes on after it was killed, keeps what it must, and its checksums find what has changed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from deitkit.cli import main
from deitkit.data import packing
from deitkit.data.decode import open_rgb
from deitkit.data.packing import pack, shards_of, verify
from deitkit.data.table import read_table
from deitkit.errors import DataError, DeitkitError, RunFolderError, SettingError

from ..conftest import write_images

FORMATS = ["webdataset"] + (["parquet"] if importlib.util.find_spec("pyarrow") else [])

# Slow, so that it can be killed between shards and within one.
CHILD = """
import sys, time
from deitkit.data import packing
read = packing.read_bytes
def slowly(file):
    time.sleep(0.02)
    return read(file)
packing.read_bytes = slowly
packing.pack(sys.argv[1], sys.argv[2], to=sys.argv[3], images_per_shard=5, workers=1)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("to", FORMATS)
def test_goes_on_after_a_kill(image_folder, tmp_path, to):
    whole = contents(pack(image_folder, tmp_path / "whole", to=to, images_per_shard=5).folder)
    out = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(image_folder), str(out), to])
    while child.poll() is None and len(list(out.glob("shard-*[ra]r*"))) < 2:
        time.sleep(0.005)
    child.kill()
    child.wait()
    assert (out / packing.FINISHED).exists(), "it was not killed in time"
    with pytest.raises(DataError, match="is not finished"):
        read_table(out)
    with pytest.raises(DataError, match="is not finished"):
        verify(out)
    [kept, *_] = json.loads((out / packing.FINISHED).read_text().splitlines()[0])["shard"], 0
    before = (out / kept).stat().st_mtime_ns
    with open(out / packing.FINISHED, "a") as log:
        log.write('{"shard": "shard-00')  # as a crash leaves it
    pack(image_folder, out, to=to, images_per_shard=5)
    assert (out / kept).stat().st_mtime_ns == before  # a whole shard is kept
    for left in out.glob("*.part"):
        left.unlink()
    assert contents(out) == whole and verify(out) == 5


def test_a_finished_pack_is_left_alone_and_another_refused(image_folder, tmp_path):
    pack(image_folder, tmp_path / "out", images_per_shard=5)
    before = contents(tmp_path / "out")
    assert pack(image_folder, tmp_path / "out", images_per_shard=5).shards == 5
    assert contents(tmp_path / "out") == before
    with pytest.raises(RunFolderError, match="images_per_shard was 5 and is now 6"):
        pack(image_folder, tmp_path / "out", images_per_shard=6)
    (image_folder / "cat" / "3.png").unlink()
    with pytest.raises(RunFolderError, match="images or classes have changed"):
        pack(image_folder, tmp_path / "out", images_per_shard=5)
    with pytest.raises(RunFolderError, match="is not empty"):
        pack(image_folder, tmp_path)
    with pytest.raises(DataError, match="would be taken for a class"):
        pack(image_folder, image_folder / "packed")


def test_checksums_find_what_has_changed(image_folder, tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(SystemExit):
        main(["pack", str(image_folder), "--out", str(out), "--images-per-shard=5"])
    assert "24 images in 5 shards" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(["pack", str(out), "--verify"])
    assert ended.value.code == 0 and "5 shards are as they were packed" in capsys.readouterr().out
    shard = out / "shard-000002.tar"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"shard-000002\.tar has changed since it was packed"):
        verify(out)
    shard.unlink()
    with pytest.raises(DataError, match=r"shard-000002\.tar is missing"):
        verify(out)
    plan = json.loads((out / "pack.json").read_text())
    for content in ("", "[]", json.dumps(plan | {"sums": {"../x": "0"}})):
        (out / "pack.json").write_text(content)
        with pytest.raises(DeitkitError):
            shards_of(out)


def test_smaller_copies(tmp_path):
    images = write_images(tmp_path / "images", side=40)
    Image.new("RGB", (300, 100), "red").save(images / "cat" / "0.png")
    (images / "dog" / "0.png").write_bytes(b"broken")
    made = pack(images, tmp_path / "out", size=32, quality=80)
    assert made.images == 23 and made.skipped[0][0] == "dog/0.png"
    found = read_table(tmp_path / "out").images
    sizes = {path: open_rgb(found.file(i)).size for i, path in enumerate(found.paths)}
    assert sizes["cat/0.png"] == (96, 32) and {min(size) for size in sizes.values()} == {32}
    assert found.file(0).read()[:2] == b"\xff\xd8"
    for i in range(2, 8):
        (images / "dog" / f"{i}.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="cannot be read, more than 5 %"):
        pack(images, tmp_path / "other", size=32)


@pytest.mark.parametrize("settings", [{"to": "zip"}, {"quality": 0}, {"size": 1}, {"images_per_shard": 0}])
def test_settings_that_make_no_sense(image_folder, tmp_path, settings):
    with pytest.raises(SettingError):
        pack(image_folder, tmp_path / "out", **settings)
