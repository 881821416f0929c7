"""Several processes share out one folder's work without knowing of each other."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from ..errors import RunFolderError


class Claims:
    """Numbered pieces of work, each held by one process at most.

    A piece is one byte of a lock file (POSIX record locks, which network file systems have too);
    the system frees it when its process ends, however that happens. Where there are no such locks,
    everything is granted: one process a folder, then.
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

    def take(self, piece: int, *, wait: bool = False) -> bool:
        """Whether this process now holds `piece`; with `wait`, only returns once it does."""
        try:
            import fcntl
        except ImportError:
            return True
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, piece)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            raise RunFolderError(
                f"{self.path} cannot be locked ({error.strerror}); choose --out on another file system"
            ) from None
        return True

    def free(self, piece: int) -> None:
        """Gives `piece` back."""
        try:
            import fcntl
        except ImportError:
            return
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, piece)
