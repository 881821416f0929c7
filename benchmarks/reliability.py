"""Writes results/reliability.md from the JSON files in results/reliability.

    python benchmarks/reliability.py

Only the table of faults that were found is typed in: results/reliability/faults.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from performance import source, table

FOLDER = Path(__file__).parents[1] / "results" / "reliability"
HEAD = """# Reliability

Made by `python benchmarks/reliability.py` from the files in `reliability/`, which `make chaos` and `make
fuzz` write; a short run of each belongs to `make test`. [SECURITY.md](../SECURITY.md) says what is promised.
"""


def chaos(found: dict[str, Any]) -> Iterator[str]:
    yield "## Jobs that are killed, starved and damaged"
    yield source(found)
    yield (
        f"{found['cases']} cases, {found['starts']} processes, {found['kills']} of them killed with -9, in "
        f"{found['seconds'] / 60:.0f} minutes, seed {found['seed']}. Each case ends in the undisturbed job's "
        "files, "
        "content for content, or in a refusal of one sentence; no file under a final name is incomplete, and "
        "no process, lock or shared memory is left. A finding is a case that did anything else."
    )
    if "note" in found:
        yield found["note"]
    for key, title in (("by_verb", "verb"), ("by_disturbance", "disturbance")):
        rows = []
        for name, count in found["counts"].items():
            if name.startswith(f"{key}/"):
                finished = sum(value for ending, value in count.items() if ending.startswith("finished"))
                counts = [
                    count["cases"],
                    count["kills"],
                    finished,
                    count.get("refused", 0),
                    count["findings"],
                ]
                rows.append([name.partition("/")[2], *map(str, counts)])
        yield table([title, "cases", "kills", "finished", "refused", "findings"], rows)
    if found["refusals"]:
        yield "Refusals:"
        yield "\n".join(f"- {text.partition(': deitkit: ')[2]}" for text in found["refusals"])
    for row in found["findings"]:
        first = row["findings"][0].splitlines()[0]
        yield f"Finding in case {row['case']} ({row['job']}, {row['disturbance']}): {first}"


def fuzz(found: dict[str, Any]) -> Iterator[str]:
    yield "## Readers that are fed damaged files"
    yield source(found)
    limits = found["limits"]
    yield (
        f"Seed {found['seed']}. A case fails if it raises anything but a refusal of one sentence, ends the "
        f"process, takes more than {limits['seconds']:.0f} s of processor time or "
        f"{limits['memory'] >> 20} MiB, "
        f"or is silent "
        f"for {limits['silence']:.0f} s. Files of a run folder are refused one by one and not counted."
    )
    if "note" in found:
        yield found["note"]
    rows = [
        [name, f"{t['cases']:,}", f"{t['refused']:,}", f"{t['seconds'] / 60:.0f}", str(len(t["findings"]))]
        for name, t in found["targets"].items()
    ]
    yield table(["files", "cases", "refused", "minutes", "findings"], rows)
    seen = set()
    for name, tally in found["targets"].items():
        for finding in tally["findings"]:
            lines = [line for line in finding["problem"].splitlines() if "Error" in line] or [
                finding["problem"]
            ]
            if (name, lines[-1]) not in seen:
                seen.add((name, lines[-1]))
                yield f"Finding in {name}, case {finding['case']}: {lines[-1][:200]}"


def predict(found: dict[str, Any]) -> Iterator[str]:
    yield "## `deitkit predict` on hostile images"
    yield source(found)
    yield (
        f"{found['images']} files: a peak of {found['peak_mib']} MiB, PyTorch included, and "
        f"{found['cpu_seconds']:.0f} s of processor time ({found['seconds']:.0f} s on a busy machine); goal: "
        f"below 2,048 MiB, {'met' if found['peak_mib'] < 2048 else '**missed**'}."
    )
    rows = [
        [kind, str(count), outcome]
        for kind, outcomes in found["kinds"].items()
        for outcome, count in outcomes.items()
    ]
    yield table(["kind", "files", "what became of them"], rows)


def decode(found: dict[str, Any]) -> Iterator[str]:
    yield "## Speed of decoding, before and after its limits"
    yield source(found)
    yield (
        f"{found['images']} photographs, {found['rounds']} rounds in turns; milliseconds of the processor "
        "per image, medians. Before is commit cecdeb0."
    )
    rows = [
        [
            view,
            f"{row['before_ms']:.2f}",
            f"{row['after_ms']:.2f}",
            f"{row['speed_ratio']:.2f} ({row['slowest']:.2f} to {row['fastest']:.2f})",
        ]
        for view, row in found["views"].items()
    ]
    yield table(["view", "before", "after", "speed, after over before"], rows)


SECTIONS = {"chaos": chaos, "decode": decode, "fuzz": fuzz, "predict": predict}


def main() -> None:
    parts = [HEAD]
    for path in sorted(FOLDER.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        parts += SECTIONS[found["benchmark"]](found)
    parts.append((FOLDER / "faults.md").read_text(encoding="utf-8"))
    FOLDER.with_suffix(".md").write_text("\n\n".join(map(str.strip, parts)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
