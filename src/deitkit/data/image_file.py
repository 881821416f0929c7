"""Opens image files of any origin: none of them starts a program, blocks, or fills the memory.

Pillow decodes. This module checks, before Pillow and while it works, that

- the file is a regular one, of an allowed format by its first bytes, whatever its name says;
- bytes, sides, pixels and the memory that decoding takes stay below limits;
- parsing the header ends, and so does decoding: loops over the file are metered, and so are a JPEG's scans.

A file that fails a check raises `UnreadableImage` with the reason. All others are decoded as by Pillow alone.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import os
import stat
import struct
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageFile, UnidentifiedImageError

from ..errors import DataError

HEIF_SUFFIXES = (".heic", ".heif", ".hif")
_TIFF = (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")

MAX_PIXELS = 100_000_000  # width times height of one image
MAX_SIDE = 65_535
MAX_FILE_BYTES = 512 * 2**20
_MAX_BYTES_HELD = 128 * 2**20  # of files that are held in memory as a whole while they are decoded
_BYTES_PER_PIXEL = 12  # an image may take this many times `max_pixels` bytes while it is decoded

_MAX_HEADER_READS = 100_000
_MAX_HEADER_BYTES = 16 * 2**20  # of formats that do not read the whole file with the header
_MAX_CPU_S = 60.0
_MAX_SCANS = 2_000
_MAX_SCANNED_PIXELS = 5_000_000_000  # scans of a JPEG times its pixels: about 5 s
_MAX_SCALED_PIXELS = 4_000_000  # of a PPM that Pillow scales in Python, about 1 s per million
_MAX_TIFF_ENTRIES = 4096  # tags of a directory
_MAX_TIFF_STRIPS = 1_000_000


class UnreadableImage(DataError):
    """A file that cannot be read as an image. `path` is the file, `reason` a short phrase."""

    def __init__(self, path: object, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


@contextlib.contextmanager
def opened(source: Path | BinaryIO, max_pixels: int = MAX_PIXELS) -> Iterator[ImageFile.ImageFile]:
    """The image file with its header parsed and checked, not yet decoded.

    Raises UnreadableImage if the file cannot be read as an image, whether that shows here or in the caller's
    block, where it is decoded.
    """
    try:
        with _metered(source) as file, _pillow_settings.within(max_pixels):
            formats = _identify(file, max_pixels)
            with Image.open(file, formats=formats) as image:
                _check_header(image, max_pixels)
                file.start_decoding(image)
                yield image
    except _Refused as refused:
        raise UnreadableImage(source, str(refused)) from None
    except UnreadableImage:
        raise
    except UnidentifiedImageError:
        raise UnreadableImage(source, "broken: its header cannot be parsed") from None
    except Image.DecompressionBombError:
        raise UnreadableImage(source, f"too large: over {max_pixels:,} pixels") from None
    except FileNotFoundError:
        raise UnreadableImage(source, "the file is not there") from None
    except PermissionError:
        raise UnreadableImage(source, "no right to read the file") from None
    except MemoryError:
        raise UnreadableImage(source, "too large for the memory") from None
    except Exception as error:  # a broken file can fail anywhere in a decoder
        raise UnreadableImage(source, f"broken: {' '.join(str(error).split())[:200]}") from None


def reads_heif() -> bool:
    """Whether HEIC and HEIF files can be read, that is, whether pillow-heif is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


class _Refused(Exception):
    """Why a file is not decoded."""


class _MeteredFile(io.BufferedReader):
    """A file that ends Pillow's loops over it: each of them reads.

    Parsing the header may take `_MAX_HEADER_READS` reads, decoding `_MAX_CPU_S` of the thread's time.
    """

    def __init__(self, raw: io.RawIOBase):
        super().__init__(raw)
        self._in_header = True
        self._reads = 0
        self._header_bytes_left: float = _MAX_HEADER_BYTES
        self._cpu_limit = time.thread_time() + _MAX_CPU_S
        self._scans_left: float | None = None  # of a JPEG that is decoded

    def allow_long_header(self) -> None:
        """The format's header may be as long as the file."""
        self._header_bytes_left = float("inf")

    def hold(self) -> None:
        """The decoder reads the whole file at once."""
        self.allow_long_header()
        size = self.seek(0, io.SEEK_END)
        if size > _MAX_BYTES_HELD:
            raise _Refused(f"too large: {size:,} bytes, of at most {_MAX_BYTES_HELD:,}")

    def start_decoding(self, image: Image.Image) -> None:
        """The header is parsed; what is read from now on are pixels."""
        self._in_header = False
        if image.format in ("JPEG", "MPO"):
            self._scans_left = min(_MAX_SCANS, _MAX_SCANNED_PIXELS / (image.width * image.height))

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if self._in_header:
            self._reads += 1
            self._header_bytes_left -= len(data)
            if self._reads > _MAX_HEADER_READS or self._header_bytes_left < 0:
                raise _Refused("broken: its header does not end")
        elif time.thread_time() > self._cpu_limit:
            raise _Refused(f"decoding takes longer than {_MAX_CPU_S:.0f} s")
        elif self._scans_left is not None:
            # A decoder of JPEGs runs over all pixels in each scan, and a scan may have 30 bytes.
            self._scans_left -= data.count(b"\xff\xda")
            if self._scans_left < 0:
                raise _Refused("broken: a JPEG of too many scans")
        return data


@contextlib.contextmanager
def _metered(source: Path | BinaryIO) -> Iterator[_MeteredFile]:
    """Opens `source` for reading; a binary stream is left open."""
    if isinstance(source, str | os.PathLike):
        with _MeteredFile(io.FileIO(_open_regular(source))) as file:
            yield file
    else:
        source.seek(0)
        file = _MeteredFile(source)  # type: ignore[arg-type]  # all it needs is readinto
        try:
            yield file
        finally:
            file.detach()


def _open_regular(path: str | os.PathLike[str]) -> int:
    """A file descriptor of a regular file; anything else could block, or never end."""
    # Before it is opened, because opening a device or a FIFO can have an effect.
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode) or found.st_dev in system_devices():
        raise _Refused("not a regular file")
    if found.st_size == 0:
        raise _Refused("not an image: the file is empty")
    if found.st_size > MAX_FILE_BYTES:
        raise _Refused(f"too large: {found.st_size:,} bytes, of at most {MAX_FILE_BYTES:,}")
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    return os.open(path, flags | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOINHERIT", 0))


@functools.cache
def system_devices() -> frozenset[int]:
    """Device numbers of file systems that hold no files of users, such as Linux's /proc."""
    return frozenset(os.stat(folder).st_dev for folder in ("/proc", "/sys") if os.path.ismount(folder))


def _identify(file: _MeteredFile, max_pixels: int) -> tuple[str, ...]:
    """Pillow's names of the formats that the first bytes allow; no other decoder sees the file.

    Pillow knows more formats: of them EPS would start Ghostscript, and PCX files can decode for minutes.
    """
    prefix = file.read(16)
    formats: tuple[str, ...] = ()
    if prefix.startswith(b"\xff\xd8\xff"):
        formats = ("JPEG",)  # and MPO, which begins with a JPEG
    elif prefix.startswith(b"\x89PNG\r\n\x1a\n"):
        formats = ("PNG",)
    elif prefix.startswith((b"GIF87a", b"GIF89a")):
        formats = ("GIF",)
    elif prefix.startswith(b"BM"):
        formats = ("BMP",)
    elif prefix.startswith((b"P4", b"P5", b"P6", b"Pf")):
        formats = ("PPM",)
    elif prefix.startswith((b"P1", b"P2", b"P3")):
        raise _Refused("a PPM in plain text; save it in binary form")
    elif prefix.startswith(_TIFF):
        _check_tiff(file, prefix, max_pixels)
        file.allow_long_header()
        formats = ("TIFF",)
    elif prefix[:4] == b"RIFF" and prefix[8:12] == b"WEBP":
        file.hold()
        formats = ("WEBP",)
    elif prefix[4:8] == b"ftyp":
        file.hold()
        formats = _formats_of_brand(prefix[8:12])
    if not formats:
        raise _Refused("not an image, or of an unknown format")
    file.seek(0)
    return formats


def _formats_of_brand(brand: bytes) -> tuple[str, ...]:
    """AVIF and HEIF share a container, and some files only say that they are of either."""
    if brand in _HEIF_BRANDS:
        _register_heif()
        return ("HEIF",)
    if "AVIF" not in Image.OPEN:
        Image.init()
    formats: tuple[str, ...] = ("AVIF",) if "AVIF" in Image.OPEN else ()
    if brand in (b"avif", b"avis"):
        if not formats:
            raise _Refused("AVIF images need Pillow 11.3; pip install --upgrade pillow")
        return formats
    if brand in (b"mif1", b"msf1"):
        with contextlib.suppress(_Refused):
            _register_heif()
            formats += ("HEIF",)
        return formats
    return ()


def _register_heif() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        raise _Refused('HEIC images need pillow-heif; pip install "deitkit[heif]"') from None
    if "HEIF" not in Image.OPEN:
        register_heif_opener(thumbnails=False)


def _check_tiff(file: _MeteredFile, prefix: bytes, max_pixels: int) -> None:
    """Refuses a first directory that Pillow would build large tables of.

    TIFF 6.0, section 2: a directory is a list of entries (tag, type, count, value or offset).
    """
    order = "<" if prefix[:2] == b"II" else ">"
    big = prefix[2:4] in (b"+\0", b"\0+")
    try:
        file.seek(struct.unpack_from(order + ("Q" if big else "I"), prefix, 8 if big else 4)[0])
        head, entry = (order + "Q", order + "HHQQ") if big else (order + "H", order + "HHII")
        (entries,) = struct.unpack(head, file.read(struct.calcsize(head)))
        if entries > _MAX_TIFF_ENTRIES:
            raise _Refused("broken: a TIFF of too many tags")
        table = file.read(entries * struct.calcsize(entry))
        found = {tag: (kind, count, value) for tag, kind, count, value in struct.iter_unpack(entry, table)}
    except (struct.error, OSError, ValueError):
        raise _Refused("broken: a TIFF without a directory") from None
    for tag in (273, 279, 324, 325):  # where strips and tiles lie, and their sizes
        if found.get(tag, (0, 0, 0))[1] > _MAX_TIFF_STRIPS:
            raise _Refused("broken: a TIFF of too many strips")
    sides = []
    for tag in (322, 323):  # a tile's width and height
        kind, _, value = found.get(tag, (4, 1, 0))
        # A short lies in the first bytes of the field that an offset fills.
        sides.append(value >> (48 if big else 16) if kind == 3 and order == ">" else value)
    if sides[0] * sides[1] > max_pixels:
        raise _Refused(f"too large: tiles of {sides[0]} x {sides[1]} pixels")


def _check_header(image: ImageFile.ImageFile, max_pixels: int) -> None:
    """Refuses images whose pixels would take too much memory or time."""
    width, height = image.size
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        raise _Refused(f"too large: {width} x {height} pixels, of at most {max_pixels:,}")
    scaled = image.format == "PPM" and image.tile and image.tile[0][0] == "ppm"
    if scaled and width * height > _MAX_SCALED_PIXELS:
        raise _Refused("too large: a PPM of an unusual range of values; save it as PNG")


@contextlib.contextmanager
def decoding(image: ImageFile.ImageFile, full_size: tuple[int, int], max_pixels: int) -> Iterator[None]:
    """Waits until the memory to decode `image` is free, and holds it meanwhile.

    full_size: width and height before a JPEG's reduced scale. Raises UnreadableImage, through `opened`, if
    the image would take more than `_BYTES_PER_PIXEL` * `max_pixels` bytes.
    """
    full, reduced = full_size[0] * full_size[1], image.width * image.height
    if image.format in ("JPEG", "MPO"):
        # Of a progressive one all coefficients are held, two bytes each.
        needed = 8 * reduced + (4 * full if image.info.get("progressive") else 0)
    else:
        needed = {"WEBP": 18, "AVIF": 14}.get(str(image.format), 12) * full  # as measured
    if needed > _BYTES_PER_PIXEL * max_pixels:
        raise _Refused(f"too large: {full_size[0]} x {full_size[1]} pixels in {image.format}")
    with _memory.held(needed):
        yield


class _Memory:
    """Memory that threads share: one waits while the others hold too much; alone it may take any amount."""

    def __init__(self, limit: int) -> None:
        self._limit, self._held, self._changed = limit, 0, threading.Condition()

    @contextlib.contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Holds `size` bytes."""
        with self._changed:
            self._changed.wait_for(lambda: self._held == 0 or self._held + size <= self._limit)
            self._held += size
        try:
            yield
        finally:
            with self._changed:
                self._held -= size
                self._changed.notify_all()


def _shared_memory() -> int:
    """2 GiB, or an eighth of the machine's memory if that is more: many cores then decode large images."""
    try:
        return max(2 * 2**30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 8)
    except (AttributeError, ValueError, OSError):  # not on Windows
        return 2 * 2**30


_memory = _Memory(_shared_memory())


class _PillowSettings:
    """Sets Pillow's limit on pixels and silences its warnings while any thread is inside.

    Both belong to the process: threads that saved and restored them one by one would restore what another
    thread had set. So the first thread in sets them and the last one out restores them.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0

    @contextlib.contextmanager
    def within(self, max_pixels: int) -> Iterator[None]:
        """Pillow's own limit, twice its setting, is for what it allocates before `_check_header`."""
        with self._lock:
            if self._inside == 0:
                self._filters, self._limit = warnings.catch_warnings(), Image.MAX_IMAGE_PIXELS
                self._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata; the size is checked here
                Image.MAX_IMAGE_PIXELS = max_pixels
            Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, max_pixels)
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if self._inside == 0:
                    self._filters.__exit__(None, None, None)
                    Image.MAX_IMAGE_PIXELS = self._limit


_pillow_settings = _PillowSettings()
