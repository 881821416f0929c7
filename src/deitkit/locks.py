"""Lets several processes share the work on one folder without talking to each other."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from .errors import RunFolderError


class Claims:
    """Numbered pieces of work, each held by at most one process.

    A piece is one byte of a lock file (a POSIX record lock, which network file systems support). The system
    releases it when its process ends, for whatever reason. On systems without such locks every claim
    succeeds: use one process per folder there.
    """

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> Claims:
        self._file = open(self.path, "ab")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def take(self, piece: int, *, wait: bool = False, required: bool = True) -> bool:
        """Whether this process now holds `piece`. With `wait`, blocks until it does.

        required: raises RunFolderError on a file system without locks; otherwise the claim succeeds there.
        """
        try:
            import fcntl
        except ImportError:
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, piece)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            if not required:
                return True
            raise RunFolderError(
                f"{self.path} cannot be locked ({error.strerror}); choose --out on another file system"
            ) from None
        return True

    def free(self, piece: int) -> None:
        """Releases `piece`."""
        try:
            import fcntl
        except ImportError:
            return
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, piece)
