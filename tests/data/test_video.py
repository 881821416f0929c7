"""Frames of videos and cameras as images."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from deitkit.data import video
from deitkit.data.image_inputs import named_images
from deitkit.data.video import camera_frames, video_frames
from deitkit.errors import DataError, DependencyError

cv2 = pytest.importorskip("cv2")


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """3.5 s at 10 frames/s, whose red grows by 6 a frame."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for i in range(35):
        writer.write(np.full((48, 64, 3), (0, 0, 6 * i), np.uint8))  # blue, green, red
    writer.release()
    return path


def test_a_video_gives_one_frame_per_second(clip):
    frames = list(video_frames(clip))
    assert [round(f.seconds, 1) for f in frames] == [0.0, 1.0, 2.0, 3.0]
    for frame in frames:
        red, green, blue = np.asarray(frame.image).mean((0, 1))
        assert frame.image.size == (64, 48)
        assert abs(red - 60 * round(frame.seconds)) < 6 and green < 6 and blue < 6


def test_a_video_among_images_is_its_frames(clip):
    assert [image.name for image in named_images([str(clip)])] == [f"{clip} at {i}.0 s" for i in range(4)]


def test_a_folder_does_not_give_its_videos(clip):
    with pytest.raises(DataError, match="no images"):
        list(named_images(clip.parent))


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video" * 100)
    with pytest.raises(DataError, match=r"a\.mp4 cannot be read as a video"):
        list(video_frames(tmp_path / "a.mp4"))


def test_a_playlist_reaches_no_address(tmp_path):
    (tmp_path / "a.mp4").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    )
    with pytest.raises(DataError, match="cannot be read as a video"):
        list(video_frames(tmp_path / "a.mp4"))


def test_frames_above_the_limit_are_refused(clip, monkeypatch):
    monkeypatch.setattr(video, "MAX_PIXELS", 1000)
    with pytest.raises(DataError, match="64 x 48 pixels; the limit is 1,000"):
        list(video_frames(clip))


def test_without_opencv_the_extra_is_named(clip, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DependencyError, match=r"deitkit\[video\]"):
        list(video_frames(clip))


def test_a_camera_gives_its_newest_frames_and_is_released(clip, monkeypatch):
    opened: list[int] = []
    real = cv2.VideoCapture(str(clip))
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: opened.append(number) or real)
    frames = camera_frames(2)
    assert [next(frames).image.size for _ in range(3)] == [(64, 48)] * 3 and opened == [2]
    with pytest.raises(DataError, match="camera 2 gives no more frames"):
        list(frames)
    assert not real.isOpened()


def test_no_camera_is_one_sentence(monkeypatch):
    closed = cv2.VideoCapture()
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: closed)
    with pytest.raises(DataError, match="camera 7 cannot be opened"):
        next(camera_frames(7))
