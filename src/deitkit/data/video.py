"""Frames of a video file or a camera as images. OpenCV reads both; it is imported when one is asked for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import DataError, DependencyError
from .image_file import MAX_PIXELS

SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})
SECONDS_APART = 1.0


@dataclass(frozen=True)
class Frame:
    """seconds: since the start of the video, or since the camera was opened."""

    seconds: float
    image: Image.Image


def is_video(path: Path) -> bool:
    """By its suffix; a file's content does not make it a video."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def video_frames(path: Path) -> Iterator[Frame]:
    """The first frame and then one per second. Raises DataError, and DependencyError without OpenCV."""
    cv2 = _opencv()
    with _opened(
        cv2.VideoCapture(str(path.resolve()), cv2.CAP_FFMPEG), f"{path} cannot be read as a video"
    ) as video:
        due = 0.0
        while video.grab():
            seconds = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
            if seconds >= due:
                yield Frame(seconds, _frame(cv2, video.retrieve()[1], path))
                due += SECONDS_APART * (1 + (seconds - due) // SECONDS_APART)
        if due == 0.0:
            raise DataError(f"{path} cannot be read as a video: it has no frame")


def camera_frames(number: int) -> Iterator[Frame]:
    """The newest frame each time one is asked for, without end. Raises as `video_frames`."""
    cv2 = _opencv()
    failed = (
        f"camera {number} cannot be opened; see which numbers your system gives its cameras, 0 is the first"
    )
    with _opened(cv2.VideoCapture(number), failed) as camera:
        camera.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        began = cv2.getTickCount()
        while True:
            there, pixels = camera.read()
            if not there:
                raise DataError(f"camera {number} gives no more frames; look at its connection")
            yield Frame(
                (cv2.getTickCount() - began) / cv2.getTickFrequency(), _frame(cv2, pixels, f"camera {number}")
            )


def _opencv() -> Any:
    try:
        # FFmpeg follows what a file refers to: only to other files, never to an address.
        os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "protocol_whitelist;file")
        os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
        import cv2
    except ImportError:
        raise DependencyError(
            "OpenCV is not installed, and videos and cameras need it; install it with: "
            'pip install "deitkit[video]"'
        ) from None
    return cv2


@contextlib.contextmanager
def _opened(capture: Any, failed: str) -> Iterator[Any]:
    try:
        if not capture.isOpened():
            raise DataError(failed)
        yield capture
    finally:
        capture.release()


def _frame(cv2: Any, pixels: Any, source: Path | str) -> Image.Image:
    """(H, W, 3) uint8, blue first -> RGB."""
    height, width = pixels.shape[:2]
    if height * width > MAX_PIXELS:
        raise DataError(
            f"{source} has frames of {width} x {height} pixels; the limit is {MAX_PIXELS:,} pixels"
        )
    return Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
