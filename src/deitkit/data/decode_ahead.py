"""Decodes batches of images in processes, where pixels do not fit the cache and are decoded at each use.

Threads share one interpreter. The processes are forked, as those of PyTorch's DataLoader on Linux, so that a
script needs no guard for its main module; elsewhere, and if a process dies, threads decode. Both give the
same pixels.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
from numpy.typing import NDArray

from .. import log
from . import image_file
from .image_file import UnreadableImage
from .stored import ImageFile

Decode = Callable[[ImageFile], tuple[NDArray[np.uint8], float]]  # a function or an object that can be pickled
Decoded = NDArray[np.uint8] | str  # pixels, or why there are none

_LOOK_SECONDS = 2.0
_FEWEST = 4  # images that are sent to a process at once


def decode_all(decode: Decode, files: Sequence[ImageFile], workers: int) -> list[Decoded]:
    """The pixels of each file, in order."""
    if workers > 1 and _forks():
        try:
            return list(_spread(_processes(workers, os.getpid()), decode, files, workers))
        except (BrokenProcessPool, OSError) as error:
            log.warning(f"a process that decodes images has ended ({error}); threads go on")
            _disable()
    return list(_spread(_threads(workers), decode, files, workers))


def _spread(pool: Executor, decode: Decode, files: Sequence[ImageFile], workers: int) -> Iterator[Decoded]:
    share = max(_FEWEST, -(-len(files) // workers))
    parts = [files[first : first + share] for first in range(0, len(files), share)]
    for found in pool.map(_decode_part, [decode] * len(parts), parts):
        yield from found


def _decode_part(decode: Decode, files: Sequence[ImageFile]) -> list[Decoded]:
    found: list[Decoded] = []
    for file in files:
        try:
            found.append(decode(file)[0])
        except UnreadableImage as error:
            found.append(error.reason)
    return found


_disabled = threading.Event()


def _disable() -> None:
    _disabled.set()


def _forks() -> bool:
    return sys.platform == "linux" and not _disabled.is_set()


@functools.lru_cache(maxsize=8)
def _threads(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max(1, workers), thread_name_prefix="decode")


_lock = threading.Lock()


def _processes(workers: int, parent: int) -> ProcessPoolExecutor:
    with _lock:  # threads that make batches ask at the same time
        return _started(workers, parent)


@functools.lru_cache(maxsize=8)
def _started(workers: int, parent: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(parent, workers))
    with warnings.catch_warnings():  # Python 3.12 warns of threads; the children only decode
        warnings.simplefilter("ignore", DeprecationWarning)
        pool.submit(os.getpid).result()  # forks all of them
    return pool


def _begin(parent: int, workers: int) -> None:
    """In a new process: signals are the parent's to handle, and its end, however it comes, ends this one."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    image_file.share_memory(workers)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
