"""How fast images are decoded by two versions of the package, in turns.

    git worktree add BEFORE COMMIT
    python benchmarks/decode_speed.py FOLDER BEFORE/src src --rounds 9 --out results/reliability/decode.json

Each version decodes the same images in a process of its own, as for training at 96 pixels and for evaluation
at 224, one image at a time. Milliseconds are of the processor, so that another process counts for neither.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from provenance import provenance

SIDE = """
import json, sys, time
from pathlib import Path
from deitkit.data.cache import Decoder

paths = [Path(line) for line in json.loads(sys.stdin.readline())]
views = {
    "training, 96 px": Decoder((110, 110), "resize"),
    "evaluation, 224 px": Decoder((224, 224), "center_crop", 0.875),
}
print("ready", flush=True)
for line in sys.stdin:
    decode = views[json.loads(line)]
    started = time.process_time()
    for path in paths:
        decode(path)
    print(1000 * (time.process_time() - started) / len(paths), flush=True)
"""
VIEWS = ("training, 96 px", "evaluation, 224 px")


class Side:
    """The process of one version."""

    def __init__(self, source: Path, paths: list[str]):
        self.process = subprocess.Popen(
            [sys.executable, "-c", SIDE],
            env=os.environ | {"PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.ask(paths)

    def ask(self, question: Any) -> str:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(question), file=self.process.stdin, flush=True)
        return self.process.stdout.readline()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    files = sorted(path for path in options.folder.rglob("*") if path.is_file())
    paths = [str(path) for path in files[:: max(1, len(files) // options.images)][: options.images]]
    before, after = Side(options.before, paths), Side(options.after, paths)
    rows = {}
    for view in VIEWS:
        times = [(float(before.ask(view)), float(after.ask(view))) for _ in range(options.rounds)]
        ratios = [old / new for old, new in times]
        rows[view] = {
            "before_ms": statistics.median(old for old, _ in times),
            "after_ms": statistics.median(new for _, new in times),
            "speed_ratio": statistics.median(ratios),
            "slowest": min(ratios),
            "fastest": max(ratios),
        }
        print(f"{view}: {rows[view]}", file=sys.stderr)
    found = {
        "benchmark": "decode",
        **provenance(),
        "images": len(paths),
        "rounds": options.rounds,
        "views": rows,
    }
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
