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
import math
import os
import stat
import struct
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image, ImageFile, UnidentifiedImageError

from ..errors import DataError
from .stored import UNKNOWN_SIZE, StoredImage

NO_RIGHT = "no right to read the file"  # a right may be given later, without a change of the file

if TYPE_CHECKING:
    from typing_extensions import Buffer

HEIF_SUFFIXES = (".heic", ".heif", ".hif")
_FIRST_BYTES = {  # by Pillow's names of the formats; see also `_identify`
    "JPEG": (b"\xff\xd8\xff",),  # and MPO, which begins with a JPEG
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
    "PPM": (b"P4", b"P5", b"P6", b"Pf"),
    "TIFF": (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+"),
}
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs")

MAX_PIXELS = 100_000_000  # width times height of one image
MAX_SIDE = 65_535
MAX_FILE_BYTES = 512 * 2**20
_HELD = ("WEBP", "AVIF", "HEIF")  # formats that their decoders read into memory as a whole
_MAX_BYTES_HELD = 128 * 2**20
_BYTES_PER_PIXEL = 12  # an image may take this many times `max_pixels` bytes while it is decoded

_MAX_HEADER_BYTES = {"PPM": 64 * 2**10, "TIFF": math.inf, **dict.fromkeys(_HELD, math.inf)}
_MAX_OTHER_HEADER_BYTES = 16 * 2**20
_MAX_HEADER_CPU_S, _MAX_CPU_S = 2.0, 60.0  # of the thread that decodes
_READS_PER_LOOK = 8
_START_OF_SCAN = b"\xff\xda"  # a JPEG's marker
_MAX_SCANS = 2_000
_MAX_SCANNED_PIXELS = 5_000_000_000  # scans of a JPEG times its pixels: about 5 s
_MAX_SCALED_PIXELS = 4_000_000  # of a PPM that Pillow scales in Python, about 1 s per million
_MAX_TIFF_ENTRIES = 4096  # tags of a directory
_MAX_TIFF_STRIPS = 1_000_000


ImageSource = Path | StoredImage | BinaryIO  # what an image is read from


class UnreadableImage(DataError):
    """A file that cannot be read as an image. `path` is the file, `reason` a short phrase."""

    def __init__(self, path: object, reason: str):
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason

    def __reduce__(self) -> tuple[type[UnreadableImage], tuple[object, str]]:
        """As another process gets it."""
        return UnreadableImage, (self.path, self.reason)


@contextlib.contextmanager
def opened(source: ImageSource, max_pixels: int = MAX_PIXELS) -> Iterator[ImageFile.ImageFile]:
    """The image file with its header parsed and checked, not yet decoded.

    Raises UnreadableImage if the file cannot be read as an image, whether that shows here or in the caller's
    block, where it is decoded.
    """
    meter = _Meter()
    try:
        with _open(source, meter) as file, _PillowSettings(max_pixels):
            formats = _identify(file, max_pixels)
            _load_decoders(formats)
            meter.start_header(_MAX_HEADER_BYTES.get(formats[0], _MAX_OTHER_HEADER_BYTES))
            with Image.open(file, formats=formats) as image:
                _check_header(image, max_pixels)
                meter.start_decoding(image)
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
        raise UnreadableImage(source, NO_RIGHT) from None
    except MemoryError:
        raise UnreadableImage(source, "too large for the memory") from None
    except Exception as error:  # a broken file can fail anywhere in a decoder
        raise UnreadableImage(source, f"broken: {' '.join(str(error).split())[:200]}") from None


def reads_heif() -> bool:
    """Whether HEIC and HEIF files can be read, that is, whether pillow-heif is installed."""
    return importlib.util.find_spec("pillow_heif") is not None


class _Refused(Exception):
    """Why a file is not decoded."""


class _Meter:
    """Ends loops over a file, all of which read it: its header and its pixels take bounded time."""

    def __init__(self) -> None:
        self._in_header = True
        self._header_bytes_left = math.inf
        self._reads, self._began = 0, math.inf
        self._read_ahead = b""  # the last bytes that were read for the header; some belong to the pixels
        self._scans_left: float | None = None  # of a JPEG with more than one

    def start_header(self, max_bytes: float) -> None:
        """From now on a parser reads the header."""
        self._header_bytes_left = max_bytes
        self._reads, self._began = 0, math.inf

    def start_decoding(self, image: ImageFile.ImageFile) -> None:
        """The header is parsed; what is read from now on are pixels."""
        self._in_header = False
        self._reads, self._began = 0, math.inf
        if image.format in ("JPEG", "MPO") and not _has_one_scan(image):
            self._scans_left = min(_MAX_SCANS, _MAX_SCANNED_PIXELS / (image.width * image.height))
            self._count_scans(self._read_ahead)

    def count(self, data: memoryview) -> None:
        """Counts what was read."""
        if self._in_header:
            self._read_ahead = bytes(data)
            self._header_bytes_left -= len(data)
            if self._header_bytes_left < 0 or self._lasts(_MAX_HEADER_CPU_S):
                raise _Refused("broken: its header does not end")
        elif self._lasts(_MAX_CPU_S):
            raise _Refused(f"decoding takes longer than {_MAX_CPU_S:.0f} s")
        elif self._scans_left is not None:
            self._count_scans(bytes(data))

    def _lasts(self, seconds: float) -> bool:
        """Whether the thread has worked for longer than that."""
        self._reads += 1
        if self._reads % _READS_PER_LOOK:  # a look at the clock can take as long as a small read
            return False
        now = time.thread_time()
        self._began = min(self._began, now)
        return now - self._began > seconds

    def _count_scans(self, data: bytes) -> None:
        # The decoder runs over all pixels in each scan, and a scan may have 30 bytes.
        assert self._scans_left is not None
        self._scans_left -= data.count(_START_OF_SCAN)
        if self._scans_left < 0:
            raise _Refused("broken: a JPEG of too many scans")


def _has_one_scan(image: ImageFile.ImageFile) -> bool:
    """Whether a JPEG is sequential with all components in its first scan: its decoder reads no other one.

    Pillow has just parsed the header of that scan. ITU-T T.81, section B.2.3: marker (2 bytes), length (2),
    number of components n (1), components (2 n), spectral selection and approximation (3).
    """
    if image.format != "JPEG" or image.info.get("progressive") or image.fp is None:
        return False
    components = len(image.getbands())
    end = image.fp.tell()
    image.fp.seek(max(0, end - 8 - 2 * components))
    header = image.fp.read(5)
    image.fp.seek(end)
    return header == _START_OF_SCAN + bytes([0, 6 + 2 * components, components])


class _MeteredFile(io.FileIO):
    def __init__(self, descriptor: int, meter: _Meter) -> None:
        super().__init__(descriptor)
        self._meter = meter

    def readinto(self, buffer: Buffer, /) -> int:
        size = super().readinto(buffer) or 0
        self._meter.count(memoryview(buffer)[:size])
        return size


class _MeteredStream(io.RawIOBase):
    def __init__(self, stream: BinaryIO, meter: _Meter) -> None:
        self._stream, self._meter = stream, meter

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._stream.seek(offset, whence)

    def readinto(self, buffer: Buffer, /) -> int:
        target = memoryview(buffer).cast("B")
        data = self._stream.read(len(target))
        target[: len(data)] = data
        self._meter.count(memoryview(data))
        return len(data)


def _open(source: ImageSource, meter: _Meter) -> io.BufferedReader[io.RawIOBase]:
    """Opens `source` for reading. A stream is read from its start, and closing the result leaves it open."""
    if isinstance(source, StoredImage):
        return io.BufferedReader(_MeteredStream(io.BytesIO(_stored_bytes(source)), meter))
    if isinstance(source, Path | str):
        return io.BufferedReader(_MeteredFile(_open_regular(source), meter))
    source.seek(0)
    return io.BufferedReader(_MeteredStream(source, meter))


def _stored_bytes(source: StoredImage) -> bytes:
    """The bytes of an image in a container, with the limits of a file."""
    _check_size(0 if source.size == UNKNOWN_SIZE else source.size)
    try:
        found = source.read()
    except ValueError as error:
        raise _Refused(str(error)) from None
    if not found:
        raise _Refused("not an image: it is empty")
    _check_size(len(found))
    return found


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise _Refused(f"too large: {size:,} bytes, of at most {MAX_FILE_BYTES:,}")


_OPEN_FLAGS = sum(getattr(os, f"O_{name}", 0) for name in ("NONBLOCK", "BINARY", "CLOEXEC", "NOINHERIT"))


def _open_regular(path: Path | str) -> int:
    """A file descriptor of a regular file; anything else could block, or never end."""
    # Before it is opened, because opening a device or a FIFO can have an effect.
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode) or found.st_dev in system_devices():
        raise _Refused("not a regular file")
    if found.st_size == 0:
        raise _Refused("not an image: the file is empty")
    _check_size(found.st_size)
    return os.open(path, _OPEN_FLAGS)


@functools.cache
def system_devices() -> frozenset[int]:
    """Device numbers of file systems that hold no files of users, such as Linux's /proc."""
    return frozenset(os.stat(folder).st_dev for folder in ("/proc", "/sys") if os.path.ismount(folder))


def _identify(file: io.BufferedReader[io.RawIOBase], max_pixels: int) -> tuple[str, ...]:
    """Pillow's names of the formats that the first bytes allow; no other decoder sees the file.

    Pillow knows more formats: of them EPS would start Ghostscript, and PCX files can decode for minutes.
    """
    prefix = file.read(16)
    formats = tuple(name for name, starts in _FIRST_BYTES.items() if prefix.startswith(starts))
    if prefix.startswith((b"P1", b"P2", b"P3")):
        raise _Refused("a PPM in plain text; save it in binary form")
    if prefix[:4] == b"RIFF" and prefix[8:12] == b"WEBP":
        formats = ("WEBP",)
    elif prefix[4:8] == b"ftyp":
        formats = _formats_of_brand(prefix[8:12])
    if not formats:
        raise _Refused("not an image, or of an unknown format")
    if formats == ("TIFF",):
        _check_tiff(file, prefix, max_pixels)
    if formats[0] in _HELD:
        size = file.seek(0, io.SEEK_END)
        if size > _MAX_BYTES_HELD:
            raise _Refused(f"too large: {size:,} bytes, of at most {_MAX_BYTES_HELD:,}")
    file.seek(0)
    return formats


def _formats_of_brand(brand: bytes) -> tuple[str, ...]:
    """AVIF and HEIF share a container, and some files only say that they are of either."""
    if brand in (b"avif", b"avis"):
        return ("AVIF",)
    if brand in (b"mif1", b"msf1"):
        return ("AVIF", "HEIF") if reads_heif() else ("AVIF",)
    return ("HEIF",) if brand in _HEIF_BRANDS else ()


def _load_decoders(formats: tuple[str, ...]) -> None:
    """Imports Pillow's plugins for `formats`."""
    if "HEIF" in formats and "HEIF" not in Image.OPEN:
        try:
            from pillow_heif import register_heif_opener
        except ImportError:
            raise _Refused('HEIC images need pillow-heif; pip install "deitkit[heif]"') from None
        register_heif_opener(thumbnails=False)
    if any(name not in Image.OPEN for name in formats):
        Image.preinit()
    if any(name not in Image.OPEN for name in formats):
        Image.init()
    if "AVIF" in formats and "AVIF" not in Image.OPEN:
        raise _Refused("this Pillow reads no AVIF; pip install --upgrade pillow")


def _check_tiff(file: io.BufferedReader[io.RawIOBase], prefix: bytes, max_pixels: int) -> None:
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


def share_memory(processes: int) -> None:
    """In one of several processes that decode at once: leaves the others their share of the memory."""
    global _memory
    _memory = _Memory(_shared_memory() // processes)


def _after_fork() -> None:
    """A thread that held these locks is not in the new process."""
    global _memory
    _memory = _Memory(_shared_memory())
    _PillowSettings._lock = threading.Lock()


class _PillowSettings:
    """Sets Pillow's limit on pixels and silences its warnings while any thread is inside.

    Both belong to the process: threads that saved and restored them one by one would restore what another
    thread had set. So the first thread in sets them and the last one out restores them. Pillow's own check,
    at twice its limit, is for what it allocates before `_check_header`.
    """

    _lock, _inside = threading.Lock(), 0
    _filters: warnings.catch_warnings[None]
    _limit: int | None

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels

    def __enter__(self) -> None:
        shared = _PillowSettings
        with shared._lock:
            if shared._inside == 0:
                shared._filters, shared._limit = warnings.catch_warnings(), Image.MAX_IMAGE_PIXELS
                shared._filters.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata; the size is checked here
                Image.MAX_IMAGE_PIXELS = self._max_pixels
            Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, self._max_pixels)
            shared._inside += 1

    def __exit__(self, *error: object) -> None:
        shared = _PillowSettings
        with shared._lock:
            shared._inside -= 1
            if shared._inside == 0:
                shared._filters.__exit__(None, None, None)
                Image.MAX_IMAGE_PIXELS = shared._limit


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
