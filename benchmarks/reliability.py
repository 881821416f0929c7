"""Writes results/reliability.md from the JSON files in results/reliability.

    python benchmarks/reliability.py

Only the faults, which people found, are typed in, with the test of each.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from performance import source, table

ROOT = Path(__file__).parents[1]
HEAD = """# Reliability

Made by `python benchmarks/reliability.py` from the JSON files in `reliability/`. `make chaos` and `make fuzz` make
those; a short run of each belongs to `make test`. [SECURITY.md](../SECURITY.md) says what is promised.
"""

# What was wrong, and the tests that would find it again.
FAULTS: dict[str, list[tuple[str, str]]] = {
    "An attack from outside": [
        ("code that a teacher.json, manifest.json or hub names is run", "tests/test_trust.py, tests/test_static_safety.py"),
        ("an EPS file named .jpg starts Ghostscript", "tests/data/test_image_file.py: test_postscript_starts_no_program"),
        ("images of hundreds of megapixels take gigabytes and minutes", "tests/data/test_image_file.py: test_images_of_too_many_pixels_…, test_decoding_hostile_images_stays_below_…; benchmarks/fuzz_predict.py"),
        ("thousands of scans, headers without an end, ASCII pixels hang", "tests/data/test_image_file.py: test_a_progressive_jpeg_of_thousands_of_scans_…, test_a_header_that_does_not_end_…; tests/data/test_hostile.py"),
        ("pipes and links to devices hang", "test_only_regular_files_are_opened in tests/data/test_image_file.py, tests/teachers/test_saved.py, tests/soft_labels/test_damaged.py"),
        ("towers of folders and of links, 1,500 folders deep", "tests/data/test_folder.py: test_a_tower_of_…"),
        ("a checkpoint of nothing but NaN", "tests/training/test_nothing_lost.py: test_a_checkpoint_of_nothing_but_nan_…"),
        ("tracebacks from damaged run folders", "tests/test_run_folder.py, tests/test_fuzz.py"),
        ("SIGHUP, and SIGTERM before training, end without a word", "tests/test_signals.py, tests/training/test_resume.py"),
        ("weights that only their owner can read", "tests/test_run_folder.py: test_files_have_the_usual_permissions; tests/test_surroundings.py"),
        ("users without an entry in passwd or a home, odd TMPDIR and umask", "tests/test_surroundings.py"),
        ("a full cache disk", "tests/test_surroundings.py: test_a_full_cache_disk_…"),
        ("a training phones home", "tests/test_offline.py"),
    ],
    "Found by the harness, or while it was written": [
        ("a changed byte in a checkpoint's tensors is trained on", "tests/training/test_nothing_lost.py: test_no_changed_byte_…"),
        ("a changed byte in cached pixels, or in the note beside them, is trained on", "tests/data/test_cache.py: test_pixels_that_changed_…, test_a_changed_note_…"),
        ("an image that changes while it is decoded is cached as what it was", "tests/data/test_cache.py: test_images_that_change_…"),
        ("two jobs write to one run folder, and metrics.jsonl has lines of both", "tests/training/test_nothing_lost.py: test_a_run_folder_belongs_to_one_process"),
        ("a home that cannot be written to stops a training; a temporary cache folder that another user made is used", "tests/test_surroundings.py: test_a_home_that_cannot_be_written_to"),
        ("one link to nowhere, or a file that vanishes, ends `predict` on a folder", "tests/test_trust.py: test_links_to_nowhere_…"),
        ("each refused image of a batch keeps its pixels: 2.7 GB instead of 1.3", "tests/test_trust.py: test_a_refused_image_holds_no_memory"),
        ("a traceback of OpenVINO on a full disk", "tests/deploy/test_exporter.py: test_openvino_that_cannot_write_says_so"),
        ("tracebacks from lists where a hub's config.json has objects or pairs", "tests/weights/test_sources.py: test_a_damaged_description_is_refused"),
        ("`teacher fit` that was killed before its card refuses its own leftovers", "tests/teachers/test_commands.py: test_a_fit_that_was_stopped_…"),
    ],
}  # fmt: skip


def chaos(found: dict[str, Any]) -> Iterator[str]:
    yield "## Jobs that are killed, starved and damaged"
    yield source(found)
    yield (
        f"{found['cases']} cases, {found['starts']} processes, {found['kills']} of them killed with -9, in "
        f"{found['seconds'] / 60:.0f} minutes, seed {found['seed']}. Each case ends in the undisturbed job's files, "
        "content for content, or in a refusal of one sentence; no file under a final name is incomplete, and no "
        "process, lock or shared memory is left. A finding is a case that did anything else."
    )
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
        f"Seed {found['seed']}. A case fails if it raises anything but a refusal of one sentence, ends the process, "
        f"takes more than {limits['seconds']:.0f} s of processor time or {limits['memory'] >> 20} MiB, or is silent "
        f"for {limits['silence']:.0f} s. Files of a run folder are refused one by one and not counted."
    )
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


def faults() -> Iterator[str]:
    yield "## Faults that were found, and the test of each"
    for title, rows in FAULTS.items():
        yield f"### {title}"
        yield table(["fault", "test"], [[fault, test] for fault, test in rows])


SECTIONS = {"chaos": chaos, "fuzz": fuzz, "predict": predict}


def main() -> None:
    parts = [HEAD]
    for path in sorted((ROOT / "results" / "reliability").glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        parts += SECTIONS[found["benchmark"]](found)
    parts += faults()
    (ROOT / "results" / "reliability.md").write_text(
        "\n\n".join(map(str.strip, parts)) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
