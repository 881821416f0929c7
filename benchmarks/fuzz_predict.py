"""Memory and time of `deitkit predict` on a folder of hostile images.

    python benchmarks/fuzz_predict.py --out results/reliability/predict.json

Makes small files that decode to hundreds of megapixels or never end, broken ones, pipes and links to devices,
and honest photographs between them; classifies all of them with a small run; and records the peak resident
memory of that process, its seconds, and what became of every kind of file.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

LIMIT = 2 * 2**30  # bytes of memory
GREY, RGB, PALETTE, RGBA = 0, 2, 3, 6  # PNG's colour types
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, RGBA: 4}


def png(width: int, height: int, bits: int = 8, colour: int = GREY, cut: int = 0) -> bytes:
    """A PNG of zeros: a thousandth of its pixels' bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    row = bytes(1 + -(-width * bits * CHANNELS[colour] // 8))
    packer, rows = zlib.compressobj(1), max(1, 2**24 // len(row))
    body = b"".join(packer.compress(row * min(rows, height - top)) for top in range(0, height, rows))
    palette = chunk(b"PLTE", bytes(768)) if colour == PALETTE else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    whole = (
        b"\x89PNG\r\n\x1a\n" + header + palette + chunk(b"IDAT", body + packer.flush()) + chunk(b"IEND", b"")
    )
    return whole[: len(whole) - cut]


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photograph(side: int = 200) -> Image.Image:
    rng = np.random.RandomState(0)
    coarse = Image.fromarray(rng.randint(0, 255, (8, 8, 3)).astype(np.uint8))
    return coarse.resize((side, side), Image.Resampling.BICUBIC)


def many_scans(side: int = 200, scans: int = 5000) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    honest = saved(photograph(side), "JPEG", progressive=True)
    last = honest.rindex(b"\xff\xda")
    return honest[:-2] + honest[last:-2] * scans + b"\xff\xd9"


def gif(width: int, height: int) -> bytes:
    """The header of a GIF that says this size, with the pixels of a small one."""
    small = bytearray(saved(photograph(16).quantize(8), "GIF"))
    small[6:10] = struct.pack("<HH", width, height)
    return bytes(small)


def kinds() -> dict[str, tuple[Callable[[], bytes], str, int]]:
    """Name -> content, suffix, weight. Those that are decoded are fewer, because each takes seconds."""
    honest = saved(photograph(), "JPEG")
    return {
        "honest": (lambda: honest, ".jpg", 3),
        "png 299 Mpx 1 bit": (lambda: png(17292, 17292, 1), ".png", 2),
        "png 299 Mpx 16 bit": (lambda: png(17292, 17292, 16), ".png", 2),
        "png 299 Mpx RGBA": (lambda: png(17292, 17292, 8, RGBA), ".png", 2),
        "png panorama 20000000 x 15": (lambda: png(20_000_000, 15), ".png", 2),
        "png 65000 x 1500": (lambda: png(65_000, 1500), ".png", 0),
        "png 98 Mpx grey": (lambda: png(9900, 9900), ".png", 0),
        "png 98 Mpx 16 bit": (lambda: png(9900, 9900, 16), ".png", 0),
        "png 98 Mpx RGBA": (lambda: png(9900, 9900, 8, RGBA), ".png", 0),
        "png 98 Mpx palette": (lambda: png(9900, 9900, 8, PALETTE), ".png", 0),
        "png 98 Mpx cut short": (lambda: png(9900, 9900, 8, RGBA, cut=50_000), ".png", 0),
        "gif 17000 x 17000": (lambda: gif(17_000, 17_000), ".gif", 2),
        "gif 9000 x 9000": (lambda: gif(9000, 9000), ".gif", 0),
        "jpeg of 5000 scans": (many_scans, ".jpg", 2),
        "jpeg cut short": (lambda: honest[: len(honest) // 2], ".jpg", 2),
        "ppm in plain text": (lambda: b"P3 9000 9000 255\n" + b"1 " * 1000, ".ppm", 2),
        "ppm of a 50 MB comment": (lambda: b"P6 #" + b"x" * 50_000_000, ".ppm", 0),
        "postscript": (lambda: saved(photograph(), "EPS"), ".jpg", 2),
        "empty": (lambda: b"", ".png", 2),
        "noise": (lambda: np.random.RandomState(0).bytes(5000), ".jpg", 2),
        "pipe": (lambda: b"", ".png", 1),
        "link to /dev/zero": (lambda: b"", ".png", 1),
        "link to nowhere": (lambda: b"", ".png", 1),
    }


def write_folder(folder: Path, count: int) -> None:
    """`count` files; those of one kind share their bytes on the disk."""
    found = kinds()
    weights = {name: weight for name, (_, _, weight) in found.items()}
    rare = [name for name, weight in weights.items() if not weight]
    common = [name for name, weight in weights.items() for _ in range(weight)]
    folder.mkdir()
    first: dict[str, Path] = {}
    for i in range(count):
        # Four of each rare kind, spread over the folder.
        every = max(1, count // (4 * len(rare)))
        name = rare[i // every % len(rare)] if i % every == 0 else common[i % len(common)]
        content, suffix, _ = found[name]
        path = folder / f"{name.replace('/', '-')} {i}{suffix}"
        if name == "pipe":
            os.mkfifo(path)
        elif name.startswith("link"):
            path.symlink_to("/dev/zero" if "zero" in name else "/nonexistent")
        elif name in first:
            os.link(first[name], path)
        else:
            path.write_bytes(content())
            first[name] = path


def small_run(folder: Path) -> Path:
    """A run of one epoch, at the smallest student's size of images."""
    import deitkit

    for k, name in enumerate(("cat", "dog")):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (64, 64), (200 * k, 10 * i, 90)).save(folder / "images" / name / f"{i}.png")
    settings = {"teacher.spec": "none", "student.initial_weights": "none", "train.epochs": 1}
    settings |= {"student.image_size": 224, "train.device": "cpu"}
    return deitkit.train(folder / "images", folder / "run", **settings).folder


# `python -m deitkit`, which notes its peak at the end. The kernel's own account of a process (ru_maxrss) also
# counts what its parent held when it was started.
DEITKIT = """
import atexit, sys
from pathlib import Path
from deitkit.cli import main
peak = lambda: next(line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)
atexit.register(lambda: Path(sys.argv[1]).write_text(peak().split()[1]))
main(sys.argv[2:])
"""


def measure(run: Path, images: Path, printed: Path) -> dict[str, Any]:
    """`deitkit predict` in a process of its own."""
    peak = printed.with_suffix(".peak")
    predict = ["predict", str(run), str(images), "--csv", "--device=cpu"]
    command = [sys.executable, "-c", DEITKIT, str(peak), *predict]
    began = time.monotonic()
    with open(printed, "wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE)
        assert process.stderr is not None
        said = process.stderr.read().decode(errors="replace")
        _, status, used = os.wait4(process.pid, 0)
    return {
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mib": round(int(peak.read_text()) / 1024),
        "exit_status": os.waitstatus_to_exitcode(status),
        "said": said[-2000:],
    }


def outcomes(printed: Path) -> dict[str, dict[str, int]]:
    """Of each kind: how many were classified, and the reasons of the others."""
    found: dict[str, Counter[str]] = {}
    with open(printed, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            name = Path(row["path"]).stem.rpartition(" ")[0]
            found.setdefault(name, Counter())[row["error"] or "classified"] += 1
    return {name: dict(counter) for name, counter in sorted(found.items())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["DEITKIT_CACHE"] = str(folder / "cache")
        run = small_run(folder)
        write_folder(folder / "hostile", arguments.count)
        found = measure(run, folder / "hostile", folder / "printed.csv")
        by_kind = outcomes(folder / "printed.csv")
    import PIL

    from provenance import provenance

    content = {
        "benchmark": "predict",
        **provenance(PIL),
        "images": arguments.count,
        **found,
        "kinds": by_kind,
    }
    print(json.dumps(content, indent=1))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")
    raise SystemExit(found["peak_mib"] * 2**20 > LIMIT or found["exit_status"] not in (0, 1))


if __name__ == "__main__":
    main()
