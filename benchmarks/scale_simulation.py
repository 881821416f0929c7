"""What loaders, stragglers and failures leave of a large job: a discrete simulation, rigid and elastic.

    python benchmarks/scale_simulation.py [--days 7] [--seeds 5] [--out FILE.json]

Needs simpy (in the extra `dev`). Nothing is measured here: the numbers of `Assumed` go in, and what comes out
follows from them. Two levels, since no machine simulates every step of a week of 1,024 workers:

- Three hundred steps. Each host reads the images of its next steps from object storage, several reads at
  once, into a queue of made batches; a step begins when every host has a batch, and ends when the slowest
  worker has computed and the gradients are summed. Gives the mean step.
- Days. Hosts fail, independently. Rigid: the job waits until the host is replaced, and starts again from the
  last checkpoint. Elastic (torchrun --nnodes MIN:MAX --max-restarts): it starts again at once with the hosts
  that are left, the same global batch over fewer, and once more when the host comes back.

Goodput is the share of the time in which a job without waiting, stragglers, exchange and failures would have
done the same steps.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import simpy

from provenance import provenance

GPUS_PER_HOST = 8


@dataclass(frozen=True)
class Assumed:
    """What goes in. Seconds, and shares of 1, unless said otherwise."""

    images_per_gpu: int = 128  # of a step
    compute: float = 0.5  # of a step without any delay: DeiT-B at 250 images/s for each GPU
    exchange: float = 0.03  # the sum of the gradients
    jitter: float = 0.01  # standard deviation of a worker's compute, relative
    slow_chance: float = (
        0.0005  # that a worker's step takes `slow_factor` of the time: a hiccup of the system
    )
    slow_factor: float = 1.5
    image_bytes: int = 110_000  # ImageNet's mean JPEG
    read_bytes: int = 8 << 20  # a read of a shard
    readers: int = 16  # reads at once on a host
    latency: float = 0.06  # median of a read's first byte: object storage
    latency_spread: float = 0.8  # sigma of its logarithm; a tail of half a second
    stream: float = 60e6  # bytes per second of one read
    queue: int = 8  # batches made ahead
    checkpoint_every: float = 300.0  # as the trainer does
    restart: float = 90.0  # rendezvous, imports, reading the checkpoint, the first batches
    replace: float = 1800.0  # until another host stands in for a lost one


# Mean time between failures of one host, in hours, and where from.
FAILURES = {
    # 419 unplanned interruptions in 54 days of 16,384 GPUs: Llama 3, arXiv 2407.21783, section 3.3.4.
    "data centre": 54 * 24 * 16_384 / 419 / GPUS_PER_HOST,
    # An assumption: spot machines that are taken away every two days.
    "spot": 48.0,
}


def mean_step(workers: int, seed: int, given: Assumed, steps: int = 300) -> tuple[float, float]:
    """Seconds of a step, and of it the wait for images."""
    rng, world = random.Random(seed), simpy.Environment()
    hosts = workers // GPUS_PER_HOST
    queues = [simpy.Container(world, given.queue, init=0) for _ in range(hosts)]
    images_per_read = given.read_bytes / given.image_bytes
    reads_per_batch = given.images_per_gpu * GPUS_PER_HOST / images_per_read
    waited: list[float] = []

    def reader(queue: simpy.Container) -> Iterator[simpy.Event]:
        while True:
            # So many readers share a batch that each delivers a part of it.
            latency = rng.lognormvariate(0, given.latency_spread) * given.latency
            yield world.timeout(latency + given.read_bytes / given.stream)
            yield queue.put(min(1.0, 1 / reads_per_batch))

    def loop() -> Iterator[simpy.Event]:
        for _ in range(steps):
            began = world.now
            yield world.all_of([queue.get(1.0) for queue in queues])
            waited.append(world.now - began)
            slowest = max(rng.gauss(1, given.jitter) for _ in range(workers))
            if rng.random() < 1 - (1 - given.slow_chance) ** workers:
                slowest = max(slowest, given.slow_factor)
            yield world.timeout(given.compute * slowest + given.exchange)

    for queue in queues:
        for _ in range(given.readers):
            world.process(reader(queue))
    done = world.process(loop())
    world.run(done)
    warm = steps // 10  # the queues fill
    return (world.now - sum(waited[:warm])) / steps, statistics.mean(waited[warm:])


@dataclass
class Progress:
    """Seconds of undisturbed work that are in the last checkpoint."""

    saved: float = 0.0
    restarts: int = 0


def share_of_steps(
    hosts: int, seed: int, given: Assumed, *, failure_hours: float, elastic: bool, days: float
) -> tuple[float, int]:
    """Steps done in `days` over those that an undisturbed job does, and the restarts."""
    rng, world, progress = random.Random(seed), simpy.Environment(), Progress()
    end, up, interrupt = days * 86_400, [hosts], [world.event()]

    def changed() -> None:
        before, interrupt[0] = interrupt[0], world.event()
        before.succeed()

    def host() -> Iterator[simpy.Event]:
        while True:
            yield world.timeout(rng.expovariate(1 / (failure_hours * 3600)))
            up[0] -= 1
            changed()
            yield world.timeout(rng.expovariate(1 / given.replace))
            up[0] += 1
            changed()

    def job() -> Iterator[simpy.Event]:
        while True:
            if up[0] == 0 or (up[0] < hosts and not elastic):
                yield interrupt[0]
                continue
            event = interrupt[0]
            yield world.timeout(given.restart) | event
            progress.restarts += 1
            if event.triggered:
                continue
            running, speed = True, up[0] / hosts  # the global batch stays
            while running:
                yield world.timeout(given.checkpoint_every) | event
                if event.triggered:
                    running = False  # what came after the checkpoint is lost
                else:
                    progress.saved += given.checkpoint_every * speed

    for _ in range(hosts):
        world.process(host())
    world.process(job())
    world.run(end)
    return progress.saved / end, progress.restarts


def simulate(workers: int, days: float, seeds: int, given: Assumed) -> list[dict[str, Any]]:
    steps = [mean_step(workers, seed, given) for seed in range(seeds)]
    step, waiting = (statistics.mean(values) for values in zip(*steps, strict=True))
    rows = []
    for name, hours in FAILURES.items():
        for elastic in (False, True):
            found = [
                share_of_steps(
                    workers // GPUS_PER_HOST, seed, given, failure_hours=hours, elastic=elastic, days=days
                )
                for seed in range(seeds)
            ]
            shares = [share * given.compute / step for share, _ in found]
            rows.append(
                {
                    "workers": workers,
                    "failures": name,
                    "elastic": elastic,
                    "step_s": round(step, 4),
                    "waiting_s": round(waiting, 4),
                    "goodput": round(statistics.mean(shares), 4),
                    "lowest": round(min(shares), 4),
                    "highest": round(max(shares), 4),
                    "restarts_per_day": round(statistics.mean(n for _, n in found) / days, 2),
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--days", type=float, default=7.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[64, 1024])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    given = Assumed()
    rows = [row for n in options.workers for row in simulate(n, options.days, options.seeds, given)]
    print("| workers | failures | restarts | step, s | of it waiting | restarts a day | goodput (range) |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        kind = "elastic" if row["elastic"] else "rigid"
        spread = f"{100 * row['goodput']:.1f} % ({100 * row['lowest']:.1f} to {100 * row['highest']:.1f})"
        print(
            f"| {row['workers']} | {row['failures']} | {kind} | {row['step_s']:.3f} | {row['waiting_s']:.3f} "
            f"| {row['restarts_per_day']:.1f} | {spread} |"
        )
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        content = {"assumed": asdict(given), "failure_hours": FAILURES, "days": options.days}
        content |= {"seeds": options.seeds, "rows": rows, **provenance(simpy)}
        options.out.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
