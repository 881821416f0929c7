"""`deitkit serve` under load on loopback, beside `deitkit bench` on the same backend.

    python benchmarks/serve_load.py RUN [--backend openvino] [--clients 1 4 16] [--images 1 8] [--seconds 10]
        [--rounds 3]

Each client keeps one connection and sends a request as soon as the last is answered, with --images validation
images of the run each, as files. A row has the requests' p50 and p99 in ms, images/s, the share of `bench`'s
images/s at batch 32, and the mean batch. Rounds alternate between the server and `bench`; a row is the median
of its rounds. The server decodes and the clients run on the same machine, and `bench` does neither: on few
cores, that is most of the difference. Run it on a quiet machine. The table goes to stderr; the last line of
stdout is JSON.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from deitkit.classifier import load_folder, model_folder
from deitkit.deploy.benchmark import bench
from deitkit.evaluation.run_images import run_splits
from provenance import provenance

BOUNDARY = "deitkit-load"
MOST_IMAGES = 64  # different ones


def form(files: Sequence[bytes]) -> bytes:
    """A multipart form of the files."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="image"\r\n\r\n'.encode()
    return b"".join(head + file + b"\r\n" for file in files) + f"--{BOUNDARY}--\r\n".encode()


def client(port: int, bodies: Sequence[bytes], seconds: float, times: Any) -> None:
    """Sends requests one after the other; puts their durations in seconds on `times`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    took, ends = [], time.perf_counter() + seconds
    while (started := time.perf_counter()) < ends:
        connection.request("POST", "/predict", bodies[len(took) % len(bodies)], headers)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise SystemExit(f"the server answered {answer.status}")
        took.append(time.perf_counter() - started)
    times.put(took)


def load(port: int, bodies: Sequence[bytes], clients: int, seconds: float) -> list[float]:
    """The durations of all requests of so many clients."""
    times: Any = multiprocessing.Queue()
    arguments = (port, bodies, seconds, times)
    processes = [multiprocessing.Process(target=client, args=arguments) for _ in range(clients)]
    for process in processes:
        process.start()
    took = [duration for _ in processes for duration in times.get(timeout=seconds + 120)]
    for process in processes:
        process.join()
    return took


@contextmanager
def served(run: Path, model: str, backend: str) -> Iterator[int]:
    """A server in a process of its own; its port."""
    command = [sys.executable, "-m", "deitkit", "serve", str(run), "--port=0", f"--model={model}"]
    process = subprocess.Popen([*command, f"--backend={backend}"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = next((line for line in process.stderr if "serving" in line), "")
        found = re.search(r"http://127\.0\.0\.1:(\d+)", said)
        if found is None:
            raise SystemExit(f"the server did not start: {said}")
        yield int(found[1])
    finally:
        process.terminate()
        process.wait()


def batches(port: int) -> tuple[int, int]:
    """Batches and images that the server has run."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        text = answer.read().decode()
    counts = [
        re.search(rf"^deitkit_{name}_total{{[^}}]*}} (\d+)", text, re.M) for name in ("batches", "images")
    ]
    return int(counts[0][1]), int(counts[1][1])  # type: ignore[index]


def one_round(
    port: int, bodies: Sequence[bytes], images: int, clients: int, seconds: float
) -> dict[str, float]:
    before = batches(port)
    started = time.perf_counter()
    took = load(port, bodies, clients, seconds)
    wall = time.perf_counter() - started
    done, shown = (b - a for a, b in zip(before, batches(port), strict=True))
    return {
        "images_per_s": images * len(took) / wall,
        "p50_ms": 1000 * float(np.percentile(took, 50)),
        "p99_ms": 1000 * float(np.percentile(took, 99)),
        "batch": shown / max(1, done),
    }


def validation_files(run: Path, model: str) -> list[bytes]:
    folder = model_folder(run, model)
    classifier = load_folder(folder, device="cpu", backend="pytorch")
    images = run_splits(folder, classifier, None).val
    return [images.file(i).read_bytes() for i in range(min(MOST_IMAGES, len(images)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--model", default="recommended")
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--images", type=int, nargs="+", default=[1, 8], help="in one request")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    files = validation_files(given.run, given.model)
    sides = [(clients, images) for images in given.images for clients in given.clients]
    found: dict[tuple[int, int], list[dict[str, float]]] = {side: [] for side in sides}
    reference: list[float] = []
    for _ in range(given.rounds):
        rows = bench(given.run, model=given.model, batches=[32], backends=[given.backend], rounds=2)
        reference += [row.turns.latency.images_per_s for row in rows if row.precision == "fp32"]
        with served(given.run, given.model, given.backend) as port:
            for clients, images in sides:
                bodies = [form(files[i : i + images]) for i in range(0, len(files) - images + 1, images)]
                one_round(port, bodies, images, clients, min(2.0, given.seconds))  # warm
                found[clients, images].append(one_round(port, bodies, images, clients, given.seconds))
    alone = statistics.median(reference)
    print(f"bench, {given.backend}, batch 32: {alone:.0f} images/s", file=sys.stderr)
    table = []
    for (clients, images), rounds in found.items():
        row = {key: round(statistics.median(r[key] for r in rounds), 2) for key in rounds[0]}
        row |= {"clients": clients, "images": images, "share_of_bench": round(row["images_per_s"] / alone, 2)}
        table.append(row)
        print(
            f"{clients:3} clients x {images} images: p50 {row['p50_ms']:.1f} ms, p99 {row['p99_ms']:.1f} ms, "
            f"{row['images_per_s']:.0f} images/s ({row['share_of_bench']:.2f} of bench), "
            f"batches of {row['batch']:.1f}",
            file=sys.stderr,
        )
    print(json.dumps({"bench_images_per_s": round(alone, 1), "rows": table, **provenance()}))


if __name__ == "__main__":
    main()
