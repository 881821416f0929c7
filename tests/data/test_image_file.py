"""Files that start programs, block, never end or fill the memory are refused before they can."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deitkit.data import image_file
from deitkit.data.decode import UnreadableImage, max_pixel_value, open_rgb, read_aspect

linux = pytest.mark.skipif(sys.platform != "linux", reason="devices and FIFOs as on Linux")


def reason(content: bytes | Path, **options: int) -> str:
    """Why a file cannot be read."""
    source = io.BytesIO(content) if isinstance(content, bytes) else content
    with pytest.raises(UnreadableImage) as caught:
        open_rgb(source, **options)
    return caught.value.reason


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def grey_png(width: int, height: int, body: bytes, before: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + before + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def tiff(*tags: tuple[int, int, int, int]) -> bytes:
    """A little-endian TIFF of tags (tag, type, count, value), with some bytes after its directory."""
    return (
        b"II*\0"
        + struct.pack("<IH", 8, len(tags))
        + b"".join(struct.pack("<HHII", *t) for t in tags)
        + b"\0" * 64
    )


GREY_TIFF = [(256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]


# Formats


@pytest.mark.parametrize("suffix", ["jpg", "png", "ppm", "tif"])
def test_postscript_starts_no_program(tmp_path, monkeypatch, suffix):
    image = tmp_path / f"a.{suffix}"
    Image.new("RGB", (8, 8)).save(image, "EPS")
    for name in ("gs", "gswin32c", "gswin64c"):  # leaves a mark if it is started
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert reason(image) == "not an image, or of an unknown format"
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("kind", ["EPS", "PCX", "TGA", "SGI", "ICO", "ICNS", "DDS", "PDF", "MSP", "SPIDER"])
def test_other_formats_of_pillow_are_not_read(kind):
    mode = {"MSP": "1", "SPIDER": "F"}.get(kind, "RGB")
    assert reason(saved(Image.new(mode, (16, 16)), kind)) == "not an image, or of an unknown format"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP", "AVIF"])
def test_a_format_is_recognised_by_its_content(tmp_path, kind):
    if kind == "AVIF":
        pytest.importorskip("PIL._avif")
    (tmp_path / "a.txt").write_bytes(saved(Image.new("RGB", (16, 12), (200, 30, 40)), kind))
    for source in (tmp_path / "a.txt", io.BytesIO((tmp_path / "a.txt").read_bytes())):
        image = open_rgb(source)
        assert image.size == (16, 12) and np.abs(np.asarray(image)[6, 8] - (200.0, 30, 40)).max() < 12


def test_a_stream_stays_open():
    stream = io.BytesIO(saved(Image.new("RGB", (16, 12)), "PNG"))
    stream.read(7)
    assert open_rgb(stream).size == open_rgb(stream).size == (16, 12)
    assert reason(b"") == "not an image, or of an unknown format"


def test_photographs_of_telephones_are_read(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    image = Image.new("RGB", (64, 32), (200, 40, 30))
    image.paste((30, 60, 210), (32, 0, 64, 32))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    for name, options in {"a.heic": {}, "turned.heic": {"exif": exif.tobytes()}}.items():
        pillow_heif.from_pillow(image).save(tmp_path / name, quality=90, **options)
    pixels = np.asarray(open_rgb(tmp_path / "a.heic"))
    assert pixels.shape == (32, 64, 3) and pixels[16, 8].argmax() == 0 and pixels[16, 56].argmax() == 2
    assert read_aspect(tmp_path / "a.heic") == 2
    turned = open_rgb(tmp_path / "turned.heic")
    assert turned.width / turned.height == read_aspect(tmp_path / "turned.heic")
    assert reason(tmp_path / "a.heic", max_pixels=2000).startswith("too large: 64 x 32 pixels")


def test_without_pillow_heif_the_reason_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + b"\0" * 40)
    assert reason(tmp_path / "a.heic") == 'HEIC images need pillow-heif; pip install "deitkit[heif]"'


# Files that are none


@linux
@pytest.mark.parametrize("what", ["fifo", "zero", "folder", "proc", "tty"])
def test_only_regular_files_are_opened(tmp_path, what):
    path = tmp_path / "a.png"
    if what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        path.symlink_to({"zero": "/dev/zero", "proc": "/proc/self/status", "tty": "/dev/tty"}[what])
    began = time.monotonic()
    assert reason(path) == "not a regular file"
    with pytest.raises(UnreadableImage, match="not a regular file"):
        read_aspect(path)
    assert time.monotonic() - began < 5


def test_files_of_too_many_bytes_are_not_read(tmp_path):
    with open(tmp_path / "a.png", "wb") as file:
        file.truncate(image_file.MAX_FILE_BYTES + 1)  # takes no space
    assert "too large: 536,870,913 bytes" in reason(tmp_path / "a.png")
    with open(tmp_path / "a.webp", "wb") as file:
        file.write(b"RIFF\0\0\0\0WEBPVP8L")
        file.truncate(200 * 2**20)  # is held in memory as a whole
    assert "too large: 209,715,200 bytes" in reason(tmp_path / "a.webp")


# Memory


def test_images_of_too_many_pixels_are_refused_by_their_header():
    assert reason(grey_png(12_000, 12_000, b"")) == "too large: 12000 x 12000 pixels, of at most 100,000,000"
    assert reason(grey_png(17_000, 17_000, b"")) == "too large: over 100,000,000 pixels"
    assert reason(grey_png(20_000_000, 15, b"")).startswith("too large: over")
    assert reason(grey_png(70_000, 100, b"")) == "too large: 70000 x 100 pixels, of at most 100,000,000"
    gif = saved(Image.new("L", (8, 8)), "GIF")
    assert "too large" in reason(gif[:6] + struct.pack("<HH", 17_000, 17_000) + gif[10:])


def test_the_limit_on_pixels_is_a_parameter(tmp_path):
    Image.fromarray(np.zeros((40, 50), np.uint16)).save(tmp_path / "a.png")
    assert open_rgb(tmp_path / "a.png", max_pixels=2000).size == (50, 40)
    assert reason(tmp_path / "a.png", max_pixels=1999) == "too large: 50 x 40 pixels, of at most 1,999"
    with pytest.raises(UnreadableImage, match="too large"):
        read_aspect(tmp_path / "a.png", max_pixels=1999)


def test_decoders_that_take_more_memory_per_pixel_allow_fewer_pixels():
    image = Image.new("RGB", (50, 40))
    for kind in ("WEBP", "AVIF"):
        content = saved(image, kind)
        assert open_rgb(io.BytesIO(content), max_pixels=3000).size == (50, 40)
        assert reason(content, max_pixels=2300) == f"too large: 50 x 40 pixels in {kind}"


@pytest.mark.parametrize("mode", ["F", "I", "I;16"])
def test_intermediate_results_of_wide_values_are_small(tmp_path, mode):
    """Of 8 bytes a pixel only strips exist."""
    Image.new(mode, (3000, 3000)).save(tmp_path / "a.tif", compression="tiff_deflate")
    tracemalloc.start()
    try:
        assert open_rgb(tmp_path / "a.tif").size == (3000, 3000)
        assert tracemalloc.get_traced_memory()[1] < 60e6 < 3000 * 3000 * 8
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("mode", ["F", "I", "I;16", "RGBA", "LA", "P"])
def test_strips_change_no_pixel(tmp_path, mode, monkeypatch):
    from deitkit.data import decode

    values = np.random.RandomState(0).randint(0, 65536, (37, 50))
    if mode in ("F", "I", "I;16"):
        kind = {"F": np.float32, "I": np.int32, "I;16": np.uint16}[mode]
        image = Image.fromarray(values.astype(kind))
    else:
        image = Image.fromarray(
            (values[..., None] >> np.array([0, 2, 4, 6])).astype(np.uint8), "RGBA"
        ).convert(mode)
    image.save(
        tmp_path / "a.tif" if mode in ("F", "I") else tmp_path / "a.png",
        **({"transparency": 3} if mode == "P" else {}),
    )
    [path] = tmp_path.iterdir()
    whole = np.asarray(open_rgb(path))
    monkeypatch.setattr(decode, "_STRIP_PIXELS", 350)
    assert np.array_equal(np.asarray(open_rgb(path)), whole) and whole.std() > 10


def test_large_images_take_turns():
    memory = image_file._Memory(100)
    order: list[str] = []

    def hold(name: str, size: int, until: threading.Event) -> None:
        with memory.held(size):
            order.append(name)
            assert until.wait(10)

    first, rest = threading.Event(), threading.Event()
    rest.set()
    threads = [threading.Thread(target=hold, args=("first", 60, first))]
    threads[0].start()
    while not order:
        time.sleep(0.001)
    threads += [threading.Thread(target=hold, args=a) for a in (("large", 5000, rest), ("fits", 40, rest))]
    for thread in threads[1:]:
        thread.start()
    threads[2].join(10)
    assert order == ["first", "fits"]
    first.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first", "fits", "large"]


# Time


def test_a_progressive_jpeg_of_thousands_of_scans_is_refused():
    rng = np.random.RandomState(0)
    image = Image.fromarray(rng.randint(0, 255, (60, 80, 3), np.uint8)).resize((400, 300))
    honest = saved(image, "JPEG", progressive=True)
    last = honest.rindex(b"\xff\xda")
    scan = honest[last:-2]
    assert open_rgb(io.BytesIO(honest)).size == (400, 300)
    many = honest[:-2] + scan * 3000 + b"\xff\xd9"
    assert reason(many) == "broken: a JPEG of too many scans"
    assert reason(many, at_least=100) == "broken: a JPEG of too many scans"


def test_scans_are_fewer_the_larger_the_image(monkeypatch):
    honest = saved(Image.new("RGB", (800, 600)), "JPEG", progressive=True)
    monkeypatch.setattr(image_file, "_MAX_SCANNED_PIXELS", 800 * 600 * 5)
    assert reason(honest) == "broken: a JPEG of too many scans"
    monkeypatch.setattr(image_file, "_MAX_SCANNED_PIXELS", 800 * 600 * 12)
    assert open_rgb(io.BytesIO(honest)).size == (800, 600)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"P6\n#" + b"a" * 5_000_000 + b"\n1 1\n255\nabc", id="comment"),
        pytest.param(b"\xff\xd8\xff\xe0\0\x02" + b"a" * 5_000_000, id="junk in a JPEG"),
        pytest.param(
            b"\xff\xd8" + (b"\xff\xe1\xff\xffExif\0\0" + b"a" * 65_527) * 300, id="Exif of 20 MB in a JPEG"
        ),
        pytest.param(grey_png(4, 4, b"", chunk(b"teSt", b"") * 200_000), id="chunks of a PNG"),
        pytest.param(
            b"GIF89a\x04\0\x04\0\0\0\0!\xfe" + b"\x01a" * 3_000_000 + b"\0", id="comment blocks of a GIF"
        ),
    ],
)
def test_a_header_that_does_not_end_is_refused(content, monkeypatch):
    monkeypatch.setattr(image_file, "_MAX_HEADER_CPU_S", 0.2)
    began = time.thread_time()
    assert reason(content) == "broken: its header does not end"
    assert time.thread_time() - began < 5


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"II*\0" + struct.pack("<IH", 8, 65535), "a TIFF of too many tags"),
        (b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**40), "a TIFF of too many tags"),
        (b"II*\0" + struct.pack("<I", 2**32 - 1), "a TIFF without a directory"),
        (b"II*\0\x08", "a TIFF without a directory"),
        (tiff(*GREY_TIFF, (273, 4, 100_000_000, 8)), "a TIFF of too many strips"),
        (
            tiff(*GREY_TIFF, (324, 4, 1, 8), (322, 4, 1, 60_000), (323, 4, 1, 60_000)),
            "tiles of 60000 x 60000",
        ),
    ],
)
def test_a_tiff_of_large_tables_is_refused(content, why):
    assert why in reason(content)


def test_tiles_of_a_big_endian_tiff_are_read(tmp_path):
    tags = [(322, 3, 1, 16 << 16), (323, 3, 1, 32 << 16)]
    directory = struct.pack(">IH", 8, len(tags)) + b"".join(struct.pack(">HHII", *t) for t in tags)
    assert "too large" not in reason(b"MM\0*" + directory + b"\0" * 9)
    tags = [(322, 3, 1, 65535 << 16), (323, 3, 1, 65535 << 16)]
    directory = struct.pack(">IH", 8, len(tags)) + b"".join(struct.pack(">HHII", *t) for t in tags)
    assert "tiles of 65535 x 65535" in reason(b"MM\0*" + directory + b"\0" * 9)


@pytest.mark.parametrize("magic", [b"P1", b"P2", b"P3"])
def test_pixels_in_plain_text_are_refused(magic):
    assert reason(magic + b"\n2 2\n1\n" + b"1 " * 12) == "a PPM in plain text; save it in binary form"


def test_values_that_are_scaled_in_python_are_few(monkeypatch):
    content = b"P5\n20 10\n1000\n" + np.full(200, 1000, ">u2").tobytes()
    assert np.asarray(open_rgb(io.BytesIO(content))).min() == 255
    monkeypatch.setattr(image_file, "_MAX_SCALED_PIXELS", 199)
    assert reason(content) == "too large: a PPM of an unusual range of values; save it as PNG"


def test_decoding_that_takes_too_long_ends(monkeypatch):
    """The decoder of compressed BMPs is a loop in Python."""
    rows = (b"\x01\x07" * 64 + b"\0\0") * 600 + b"\0\x01"  # more than is read with the header
    header = struct.pack("<IiiHHIIiiII", 40, 64, 600, 1, 8, 1, len(rows), 0, 0, 256, 0)
    content = (
        b"BM" + struct.pack("<IHHI", 54 + 1024 + len(rows), 0, 0, 54 + 1024) + header + bytes(range(256)) * 4
    )
    assert open_rgb(io.BytesIO(content + rows)).size == (64, 600)
    monkeypatch.setattr(image_file, "_MAX_CPU_S", 0)
    monkeypatch.setattr(image_file, "_READS_PER_LOOK", 1)
    assert reason(content + rows) == "decoding takes longer than 0 s"


def test_many_bits_are_measured_within_the_limits():
    with pytest.raises(UnreadableImage, match="too large"):
        max_pixel_value(io.BytesIO(grey_png(17_000, 17_000, b"")))


def test_decoding_hostile_images_stays_below_two_gigabytes(tmp_path):
    """The largest image of each kind that is decoded: 16 bits, transparency, floats, animation."""
    pytest.importorskip("resource")
    side = 3000
    Image.new("RGBA", (side, side), (9, 9, 9, 128)).save(tmp_path / "a.png", compress_level=1)
    Image.new("I;16", (side, side)).save(tmp_path / "b.png", compress_level=1)
    Image.new("F", (side, side)).save(tmp_path / "c.tif", compression="tiff_deflate")
    Image.new("P", (side, side)).save(tmp_path / "d.gif")
    code = (
        "import resource, sys; from pathlib import Path; from deitkit.data.decode import open_rgb\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for path in Path(sys.argv[1]).iterdir(): open_rgb(path)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 12 * side * side  # a hundredth of the pixels would take 1.2 GB
