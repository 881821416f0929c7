"""Damaged image files of every format: each is decoded or refused, within time and memory.

The files are mutations of small images, made from a seed. A process of their own decodes them, so that a
crash or a hang does not end the tests. `python tests/data/test_hostile.py SEED FIRST COUNT` decodes some of
them.
"""

from __future__ import annotations

import io
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from PIL import Image

MAX_PIXELS = 4_000_000  # of an image that is decoded: mutated headers tell every size
CPU_SECONDS = 10.0  # per file; the largest takes well below one
MEMORY = 400 * 2**20  # of all files together, beyond what the process needs before
SILENCE = 120.0  # seconds without an answer, after which the process hangs


def photograph(width: int = 50, height: int = 38) -> Image.Image:
    rng = np.random.RandomState(0)
    coarse = Image.fromarray(rng.randint(0, 255, (5, 7, 3)).astype(np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def originals() -> dict[str, bytes]:
    """A small whole file of each kind."""
    image = photograph()
    clear = image.copy()
    clear.putalpha(120)
    grey, palette = image.convert("L"), image.quantize(30)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "described"
    frames = {"save_all": True, "append_images": [image.rotate(90, expand=False)]}
    files = {
        "jpeg": saved(image, "JPEG", exif=exif, icc_profile=b"profile" * 90),
        "jpeg progressive": saved(image, "JPEG", progressive=True, subsampling=0),
        "jpeg cmyk": saved(image.convert("CMYK"), "JPEG"),
        "mpo": saved(image, "MPO", **frames),
        "png": saved(image, "PNG", exif=exif, icc_profile=b"profile" * 90),
        "png alpha": saved(clear, "PNG"),
        "png 16": saved(deep, "PNG"),
        "png palette": saved(palette, "PNG", transparency=3),
        "png animated": saved(image, "PNG", **frames),
        "webp": saved(image, "WEBP", exif=exif.tobytes()),
        "webp lossless": saved(clear, "WEBP", lossless=True),
        "webp animated": saved(image, "WEBP", **frames),
        "gif": saved(palette, "GIF", comment=b"remark" * 90),
        "gif animated": saved(palette, "GIF", **frames, transparency=3, disposal=2),
        "tiff": saved(image, "TIFF", exif=exif),
        "tiff floats": saved(grey.convert("F"), "TIFF"),
        "bmp": saved(image, "BMP"),
        "bmp palette": saved(palette, "BMP"),
        "ppm": saved(image, "PPM"),
        "pgm 16": saved(deep, "PPM"),
        "pgm scaled": b"P5 # remark\n50 38\n1000\n" + np.asarray(deep, ">u2").tobytes(),
        "pbm": saved(image.convert("1"), "PPM"),
        "pfm": saved(grey.convert("F"), "PPM"),
        "eps": saved(image, "EPS"),
        "pcx": saved(image, "PCX"),
    }
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits", "group4"):
        mode = "1" if compression == "group4" else "RGB"
        files[f"tiff {compression}"] = saved(image.convert(mode), "TIFF", compression=compression)
    try:
        files["avif"] = saved(image, "AVIF", exif=exif.tobytes())
        files["avif animated"] = saved(image, "AVIF", **frames)
    except (KeyError, OSError):  # an older Pillow
        pass
    try:
        from pillow_heif import from_pillow

        stream = io.BytesIO()
        from_pillow(image).save(stream, quality=60, exif=exif.tobytes())
        files["heic"] = stream.getvalue()
    except ImportError:
        pass
    return files


def flip(data: bytearray, rng: np.random.RandomState) -> None:
    for _ in range(rng.randint(1, 9)):
        data[rng.randint(len(data))] ^= 1 << rng.randint(8)


def set_bytes(data: bytearray, rng: np.random.RandomState) -> None:
    for _ in range(rng.randint(1, 4)):
        data[rng.randint(len(data))] = int(rng.choice([0, 1, 0x7F, 0x80, 0xFF, 0x23]))


def set_number(data: bytearray, rng: np.random.RandomState) -> None:
    """An extreme number somewhere in the header, of either byte order."""
    size = int(rng.choice([2, 4, 8]))
    number = int(rng.choice([0, 1, 2, 255, 4000, 32_767, 65_535, 2**20, 2**31 - 1, 2**32 - 1])) % 256**size
    at = rng.randint(min(len(data), 300))
    data[at : at + size] = number.to_bytes(size, "little" if rng.rand() < 0.5 else "big")


def truncate(data: bytearray, rng: np.random.RandomState) -> None:
    del data[rng.randint(1, len(data) + 1) :]


def remove(data: bytearray, rng: np.random.RandomState) -> None:
    at = rng.randint(len(data))
    del data[at : at + rng.randint(1, 50)]


def insert(data: bytearray, rng: np.random.RandomState) -> None:
    at = rng.randint(len(data) + 1)
    data[at:at] = rng.bytes(rng.randint(1, 50))


def repeat(data: bytearray, rng: np.random.RandomState) -> None:
    """A piece of the file many times: segments, chunks, scans, blocks."""
    at = rng.randint(len(data))
    piece = bytes(data[at : at + rng.randint(1, 200)])
    data[at:at] = piece * int(rng.choice([2, 10, 1000]))


def swap(data: bytearray, rng: np.random.RandomState) -> None:
    a, b, size = rng.randint(len(data)), rng.randint(len(data)), rng.randint(1, 64)
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


MUTATIONS: list[Callable[[bytearray, np.random.RandomState], None]] = [
    flip, set_bytes, set_number, set_number, truncate, remove, insert, repeat, swap,
]  # fmt: skip


def hostile_file(files: dict[str, bytes], seed: int, case: int) -> tuple[str, bytes]:
    """A name and the content of a case: one to three mutations of a file, maybe with the head of another."""
    rng = np.random.RandomState([seed, case])
    name = sorted(files)[case % len(files)]
    data, said = bytearray(files[name]), [name]
    if rng.rand() < 0.1:
        other = sorted(files)[rng.randint(len(files))]
        at = rng.randint(1, 64)
        data, said = bytearray(files[other][:at] + bytes(data[at:])), [*said, f"head of {other}"]
    for _ in range(rng.randint(1, 4)):
        if data:
            mutate = MUTATIONS[rng.randint(len(MUTATIONS))]
            mutate(data, rng)
            said.append(mutate.__name__)
    return ", ".join(said), bytes(data)


def decode_cases(seed: int, first: int, count: int) -> None:
    """Decodes cases. Prints a JSON line before and after each."""
    import resource
    import tempfile
    from pathlib import Path

    from deitkit.data.decode import UnreadableImage, max_pixel_value, open_rgb, read_aspect

    files = originals()
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jpg"
        for case in range(first, first + count):
            name, data = hostile_file(files, seed, case)
            print(json.dumps({"case": case, "name": name}), flush=True)
            path.write_bytes(data)
            began = time.thread_time()
            decoded = 0
            reads: tuple[Callable[[], object], ...] = (
                partial(open_rgb, path, max_pixels=MAX_PIXELS),
                partial(open_rgb, io.BytesIO(data), at_least=16, max_pixels=MAX_PIXELS),
                partial(read_aspect, path, max_pixels=MAX_PIXELS),
                partial(max_pixel_value, path, max_pixels=MAX_PIXELS),
            )
            for read in reads:
                try:
                    read()
                    decoded += 1
                except UnreadableImage as error:
                    assert error.reason and "\n" not in error.reason
            memory = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
            print(
                json.dumps({"decoded": decoded, "s": time.thread_time() - began, "memory": memory}),
                flush=True,
            )


def run_cases(seed: int, first: int, count: int) -> list[int]:
    """How many of four ways each case was decoded in, by a process that must answer for every case."""
    command = [sys.executable, __file__, str(seed), str(first), str(count)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    lines: queue.Queue[str] = queue.Queue()
    errors: list[str] = []
    readers = [
        threading.Thread(target=lambda: [*map(lines.put, process.stdout or ()), lines.put("")]),
        threading.Thread(target=lambda: errors.extend(process.stderr or ())),
    ]
    for reader in readers:
        reader.start()
    case, decoded = "the first one", []
    try:
        while line := lines.get(timeout=SILENCE):
            said = json.loads(line)
            if "name" in said:
                case = f"case {said['case']} of seed {seed} ({said['name']})"
                continue
            assert said["s"] < CPU_SECONDS, f"{case} takes {said['s']:.1f} s"
            assert said["memory"] < MEMORY, f"{case} takes {said['memory'] / 2**20:.0f} MiB"
            decoded.append(said["decoded"])
    except queue.Empty:
        pytest.fail(f"{case} hangs")
    finally:
        process.kill()
        process.wait()
        for reader in readers:
            reader.join()
    assert len(decoded) == count, f"{case} ends the process: {''.join(errors)[-2000:]}"
    return decoded


def test_whole_files_are_read():
    from deitkit.data.decode import open_rgb

    for name, content in originals().items():
        if name not in ("eps", "pcx"):
            assert sorted(open_rgb(io.BytesIO(content)).size) == [38, 50], name


def test_hostile_files_are_decoded_or_refused():
    pytest.importorskip("resource")
    decoded = run_cases(seed=0, first=0, count=300)
    assert 30 < sum(map(bool, decoded)) < 270  # mutations that break all files, or none, show little


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(20))
def test_many_hostile_files_are_decoded_or_refused(part):
    pytest.importorskip("resource")
    run_cases(seed=1, first=1000 * part, count=1000)


if __name__ == "__main__":
    decode_cases(*map(int, sys.argv[1:]))
