"""A training runs wherever it is put: users without a name or a home, odd folders and permissions."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from deitkit.data import cache
from deitkit.data.cache import Decoder, default_cache_dir, open_store
from deitkit.data.folder import scan
from deitkit.errors import DataError

from .conftest import TINY, VERBS, write_images

posix = pytest.mark.skipif(not hasattr(os, "getuid"), reason="users as on POSIX")
STRANGER = 54321  # no user of this machine


@pytest.fixture
def place(tmp_path_factory):
    """A folder that everybody may write to; its images."""
    folder = Path(tempfile.mkdtemp())
    write_images(folder / "images")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o644)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def stranger() -> list[str]:
    """What runs a command as a user without an entry in passwd, who may read everything if we may."""
    if os.geteuid():
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    may_read = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups", *may_read]


def run_verbs(place: Path, environment: dict[str, str | None], umask: int = 0o022) -> str:
    """Trains, resumes and predicts; returns what was said."""
    import json

    images, run = str(place / "images"), str(place / "run")
    verbs = [
        ["train", images, "--out", run, *TINY, "--init=none"],
        ["predict", run, f"{images}/cat/0.png"],
        ["export", run, "--to=openvino", f"--out={place / 'a.xml'}"],
        ["analyze", run, images],
    ]
    changed = {**os.environ, **environment}
    env = {key: value for key, value in changed.items() if value is not None}
    command = [*stranger(), sys.executable, "-c", VERBS, json.dumps(verbs)]
    done = subprocess.run(command, env=env, cwd=place, umask=umask, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (place / "run" / "results.json").exists()
    return done.stdout + done.stderr


@posix
@pytest.mark.parametrize("home", ["unset", "missing", "read-only"])
def test_a_user_without_an_entry_or_a_home(place, home):
    pytest.importorskip("openvino")
    homes = {"unset": None, "missing": "/nonexistent", "read-only": str(place / "home")}
    (place / "home").mkdir(mode=0o555)
    environment = {"HOME": homes[home], "DEITKIT_CACHE": None, "XDG_CACHE_HOME": None, "USER": None}
    environment |= {"TMPDIR": str(place / "missing"), "LOGNAME": None, "MPLCONFIGDIR": None}
    said = run_verbs(place, environment)
    assert "Traceback" not in said


@posix
@pytest.mark.parametrize("umask", [0o077, 0o022])
def test_files_have_the_permissions_that_the_user_chose(place, umask):
    pytest.importorskip("openvino")
    run_verbs(place, {"DEITKIT_CACHE": str(place / "cache")}, umask)
    files = [p for p in (place / "run").rglob("*") if p.is_file()] + [place / "a.xml", place / "a.bin"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}


@posix
def test_a_home_that_cannot_be_written_to(monkeypatch, tmp_path):
    for name in ("DEITKIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    folder = default_cache_dir()
    assert folder == tmp_path / f"deitkit-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert default_cache_dir() == folder
    folder.rmdir()
    folder.symlink_to(tmp_path)  # as another user could make
    with pytest.raises(DataError, match="belongs to another user; set DEITKIT_CACHE"):
        default_cache_dir()


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="reserves space as on POSIX")
def test_a_full_cache_disk_is_told_before_anything_is_decoded(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    images = scan(write_images(tmp_path / "images"), tmp_path / "images")
    monkeypatch.setattr(cache.os, "posix_fallocate", full)
    monkeypatch.setattr(Decoder, "__call__", lambda self, path: pytest.fail("decoded"))
    with pytest.raises(DataError, match=r"cannot be cached in .*No space left.*; free some space there"):
        open_store(images, Decoder((8, 8), "resize"), cache_dir=tmp_path / "c", limit_bytes=10**9, workers=1)
    assert not list((tmp_path / "c").iterdir())
