"""Writes results/performance.md from the JSON files in results/.

    python benchmarks/performance.py [--results results]

Each file is the last line of a benchmark's stdout; its entry `benchmark`, or else its name, says of
which. Only goals and published figures are typed in, with their source beside them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gpu import GOALS

PUBLISHED = [
    # arXiv 2012.12877, table 1; images/s
    ("paper, V100", {"tiny": 2536, "small": 940, "base": 292}),
    # timm's published benchmark results
    ("timm, RTX 4090, amp, compiled", {"tiny": 24_300, "small": 9_700, "base": 3_300}),
]
GOAL_INFERENCE, GOAL_LOGITS, GOAL_HELP = 0.97, 1e-3, 0.3
GOAL_MERGED, GOAL_MERGED_LOSS = 1.6, 0.5  # times, points of top-1
GOAL_TRAINING = {"nano": 2.0, "tiny": 1.4}  # with the teacher, over timm; by student
GOAL_WITHOUT_TEACHER, GOAL_FIRST_EPOCH = 1.15, 1.3
GOAL_SHARE_OF_TIMMS_SECONDS = 1 / 3  # for timm's full accuracy
GOAL_STORED_OVER_NONE, GOAL_REGNET_SAVING = 0.95, 3.0
GOAL_TEACHER, GOAL_OTHER_TEACHERS = {"tf_efficientnet_lite0": 4.0}, 1.2
Row = list[str]


def table(head: Row, rows: Iterable[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def verdict(value: float, goal: float, *, at_most: bool = False) -> str:
    return "met" if (value <= goal if at_most else value >= goal) else "**missed**"


def source(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"`{found['command']}` on {found['machine']}, {versions}, {found['date']}."


def inference(found: dict[str, Any]) -> Iterator[str]:
    yield "## Inference, DeiT at 224 px"
    yield source(found)
    rows = [
        [r["model"], str(r["batch"]), r["side"], f"{r['images_per_s']:.1f}"]
        + [f"{r[p]:.1f}" for p in ("p50_ms", "p90_ms", "p99_ms")]
        + [f"{r['memory_mb']:.0f}"]
        for model in found["models"].values()
        for r in model["rows"]
    ]
    yield table(["model", "batch", "side", "images/s", "p50 ms", "p90", "p99", "MB"], rows)
    goals = []
    for name, model in found["models"].items():
        for what, ratio in model["ratio_to_best_of_timm"].items():
            goal = f"at least {GOAL_INFERENCE}x of timm's best"
            goals.append([f"{name}, {what}", goal, f"{ratio:.2f}x", verdict(ratio, GOAL_INFERENCE)])
        for what, speedup in model["merged_speedup"].items():
            goal = f"{found['merge']} tokens merged per block: at least {GOAL_MERGED}x"
            goals.append([f"{name}, {what}", goal, f"{speedup:.2f}x", verdict(speedup, GOAL_MERGED)])
    for name, sides in found["logits_within"].items():
        largest = max(sides.values())
        state = verdict(largest, GOAL_LOGITS, at_most=True)
        goals.append([name, f"logits within {GOAL_LOGITS:g} of timm's", f"{largest:.1e}", state])
    yield table(["what", "goal", "measured", ""], goals)
    for name, model in found["models"].items():
        for side, why in model["failed"].items():
            yield f"{name}, {side}: not measured ({why})."


def training(found: dict[str, Any]) -> Iterator[str]:
    yield f"## Training, {found['student']}"
    yield source(found)
    sides = {name: side for name, side in found.items() if isinstance(side, dict) and "median" in side}
    rows = [
        [
            name,
            f"{side['median']:.1f}",
            f"{side['min']:.1f} to {side['max']:.1f}",
            str(side.get("memory_mb", "")),
        ]
        for name, side in sides.items()
    ]
    yield table(["images/s of the whole loop, EfficientNet-Lite0", "median", "rounds", "MB"], rows)
    goals = [
        ("with the teacher", found["ratio_with_teacher"], GOAL_TRAINING.get(found["student"].split()[0])),
        ("without a teacher", found["ratio_without_teacher"], GOAL_WITHOUT_TEACHER),
    ]
    lines = [
        [what, f"at least {goal}x of timm", f"{ratio:.2f}x", verdict(ratio, goal)]
        if goal is not None
        else [what, "none", f"{ratio:.2f}x", ""]
        for what, ratio, goal in goals
    ]
    for what in ("teacher", "no teacher"):
        ours, theirs = sides[f"deitkit, {what}"], sides[f"timm, {what}"]
        if "memory_mb" not in ours:  # an old file without memory
            continue
        ratio = ours["memory_mb"] / theirs["memory_mb"]
        state = verdict(ratio, 1.0, at_most=True)
        lines.append([f"memory, {what}", "at most timm's", f"{ratio:.2f}x", state])
    yield table(["what", "goal", "measured", ""], lines)
    ours = found["deitkit, teacher"]
    if "stages" in ours:
        alone = {"decode": ours["decode_images"] / ours["decode_seconds"], **ours["stages"]}
        rows = [[name, f"{speed:.0f}"] for name, speed in alone.items()]
        yield table(["one stage alone", "images/s"], rows)
        # Images are decoded once, before the first epoch, whose time includes it.
        longer = 1 + ours["decode_seconds"] * ours["median"] / ours["decode_images"]
        state = verdict(longer, GOAL_FIRST_EPOCH, at_most=True)
        yield (
            f"The first epoch with its decoding takes {longer:.2f} times a later one "
            f"(goal: at most {GOAL_FIRST_EPOCH}, {state})."
        )


def beside_timm(found: dict[str, Any]) -> Iterator[str]:
    yield f"## Accuracy against seconds, {found['data']}"
    yield source(found)
    runs = found["runs"]
    rows = [
        [
            *(str(r[key]) for key in ("side", "how", "size", "seed")),
            *(f"{r['top1']:.1f}", f"{r['seconds']:.0f}", f"{r['share_of_timms_seconds']:.2f}"),
        ]
        for r in runs
    ]
    yield table(["side", "epochs and how", "px", "seed", "top-1, %", "seconds", "of timm's"], rows)
    goals = []
    for full in (r for r in runs if r["side"] == "timm"):
        name = f"timm, {full['how']}, {full['size']} px, seed {full['seed']}"
        points = [f"{p['top1']:.1f} % after {p['seconds']:.0f} s" for p in full["curve"]]
        yield f"{name}: {', '.join(points)}."
        same = [r for r in runs if all(r[key] == full[key] for key in ("size", "seed"))]
        # Initial weights trained on these images are what a user gets, but no fair comparison.
        ours = [r for r in same if r["side"] == "deitkit" and "student.initial_weights=none" in r["how"]]
        if not ours:
            continue
        reached = [r for r in ours if r["top1"] >= full["top1"]]
        if reached:
            first = min(reached, key=lambda r: r["seconds"])
            share = first["seconds"] / full["seconds"]
            state = verdict(share, GOAL_SHARE_OF_TIMMS_SECONDS, at_most=True)
            measured = f"{first['how']}: in {share:.2f} of it"
        else:
            best = max(ours, key=lambda r: r["top1"])
            measured, state = f"{best['how']}: {best['top1']:.1f} of {full['top1']:.1f} %", "**missed**"
        goals.append([name, "timm's full accuracy in a third of its time", measured, state])
    if goals:
        yield table(["beside", "goal", "measured", ""], goals)


def labels(found: dict[str, Any]) -> Iterator[str]:
    yield f"## Soft labels, {found['data']} at {found['image_size']} px"
    yield source(found)
    sweep, loop, regnet = found["sweep"], found["loop"], found["regnet"]
    rows = [
        [r["student"]] + [f"{r[f'{side}_s']:.0f} s, {r[f'{side}_top1']:.1f} %" for side in ("live", "stored")]
        for r in sweep["rows"]
    ]
    rows.append(["the label pass", "", f"{sweep['label_pass_s']:.0f} s"])
    rows.append(["together", *(f"{sweep[f'{side}_total_s']:.0f} s" for side in ("live", "stored"))])
    yield table([f"whole jobs of {found['epochs']} epochs", "live teacher", "soft labels"], rows)
    yield f"One teacher pass and four students take {sweep['saving']:.2f} times less than four live ones."
    rows = [
        [name, f"{loop[name]:.1f}", f"{low:.1f} to {high:.1f}"]
        for name, (low, high) in loop["spread"].items()
    ]
    yield table(["images/s of the training loop", "median", "rounds"], rows)
    ratio = loop["stored_over_none"]
    state = verdict(ratio, GOAL_STORED_OVER_NONE)
    goals = [["the loop on soft labels", "within 5 % of no teacher", f"{ratio:.3f}x", state]]
    if regnet is not None:
        saving, goal = regnet["saving"], f"saving at least {GOAL_REGNET_SAVING:g}x over four students"
        state = verdict(saving, GOAL_REGNET_SAVING)
        goals.append(["RegNetY-16GF, Ti students at 224 px", goal, f"{saving:.2f}x", state])
    yield table(["what", "goal", "measured", ""], goals)


def teachers_speed(found: dict[str, Any]) -> Iterator[str]:
    yield f"## Frozen teachers at {found['size']} px"
    yield source(found)
    rows = [
        [name, str(r["batch"]), r["side"], f"{r['images_per_s']:.1f}", f"{r['p50_ms']:.1f}"]
        for name, model in found["models"].items()
        for r in model["rows"]
    ]
    yield table(["model", "batch", "side", "images/s", "p50 ms"], rows)
    goals = []
    for name, model in found["models"].items():
        goal = GOAL_TEACHER.get(name, GOAL_OTHER_TEACHERS)
        for what, ratio in model["chosen_over_timm_eager"].items():
            line = [f"{name}, {what}: {model['chosen']}", f"at least {goal}x of timm eager", f"{ratio:.2f}x"]
            goals.append([*line, verdict(ratio, goal)])
    yield table(["what", "goal", "measured", ""], goals)


def accuracy_against_throughput(results: Path) -> Iterator[str]:
    """The figures of the study `throughput`, as the paper's figure 1."""
    for picture in sorted(results.glob("studies/throughput/*/figure.svg")):
        data = picture.parent.name
        yield f"## Accuracy against throughput, {data}"
        yield f"`deitkit study throughput`, three seeds: [table](studies/throughput/{data}/summary.md)."
        yield f"![top-1 against images/s on {data}]({picture.relative_to(results)})"


def merging(found: dict[str, Any]) -> Iterator[str]:
    yield "## Token merging on trained models"
    yield source(found)
    for run in found["runs"]:
        rows = [
            [
                *(r["backend"], str(r["merge"]), f"{r['images_per_s']:.1f}", f"{r['speedup']:.2f}"),
                *(" to ".join(f"{x:.2f}" for x in r["speedup_range"]), f"{r['top1']:.1f}"),
                f"{r['top1_lost']:.1f}",
            ]
            for r in run["rows"]
        ]
        head = ["backend", "merged per block", "images/s", "speedup", "rounds", "top-1, %", "points lost"]
        yield f"{run['run']}, {run['image_size']} px, batch {run['batch']}:"
        yield table(head, rows)
        within = [r for r in run["rows"] if r["top1_lost"] <= GOAL_MERGED_LOSS]
        best = max(within, key=lambda r: r["speedup"])
        goal = f"{run['run']}, at most {GOAL_MERGED_LOSS} points lost: at least {GOAL_MERGED}x"
        measured = f"{best['speedup']:.2f}x ({best['backend']}, {best['merge']} per block)"
        yield table(["goal", "best", ""], [[goal, measured, verdict(best["speedup"], GOAL_MERGED)]])


def efficiency(found: dict[str, Any]) -> Iterator[str]:
    yield f"## The same student for less work, {found['data']}, {found['epochs']} epochs"
    yield source(found)
    rows = [
        [
            name,
            f"{arm['top1']:.1f} ± {arm['top1_std']:.1f}",
            f"{arm['seconds']:.0f} ± {arm['seconds_std']:.0f}",
            f"{arm['top1_gained']:+.1f}",
            f"{arm['seconds_ratio']:.2f}",
        ]
        for name, arm in found["arms"].items()
    ]
    yield table(["arm", "top-1, %", "seconds", "points beside full", "of its seconds"], rows)


def published() -> Iterator[str]:
    yield "## Published figures, images/s"
    names = ["tiny", "small", "base"]
    rows = [[who, *(str(figures[name]) for name in names)] for who, figures in PUBLISHED]
    yield table(["source and device", *names], rows)


def cost_growth(found: dict[str, Any]) -> Iterator[str]:
    yield "## How cost grows"
    yield source(found)
    rows = [
        [
            name,
            one["of"],
            ", ".join(f"{x:g}: {y:.3g} {one['unit']}" for x, y in one["points"]),
            str(one["exponent"]),
        ]
        for name, one in found["series"].items()
    ]
    yield table(["what", "against", "measured", "exponent"], rows)
    took = found["help_seconds"]
    state = verdict(took, GOAL_HELP, at_most=True)
    yield f"`deitkit --help` takes {took:.2f} s (goal: {GOAL_HELP} s, {state})."


def gpu(found: dict[str, Any]) -> Iterator[str]:
    yield "## One GPU"
    yield source(found)
    rows = []
    for row in found["goals"]:
        value = row["measured"]
        shown = ["not measured", ""] if value is None else [f"{value:,.3g}", verdict(value, row["goal"])]
        rows.append([row["what"], f"{row['goal']:,}", *shown])
    yield table(["what", "goal", "measured", ""], rows)


def gpu_not_measured() -> Iterator[str]:
    yield "## One GPU"
    how = "`benchmarks/gpu.sh` measures it, [docs/gpu.md](../docs/gpu.md) says what to expect"
    yield f"Not measured: no GPU was at hand. {how}."
    yield table(["what", "goal"], [[what, f"{goal:,}"] for what, goal, _ in GOALS])


SECTIONS: dict[str, Callable[[dict[str, Any]], Iterator[str]]] = {
    "training": training,
    "beside timm": beside_timm,
    "labels": labels,
    "teachers speed": teachers_speed,
    "inference": inference,
    "cost-growth": cost_growth,
    "merging": merging,
    "efficiency": efficiency,
    "gpu": gpu,
}


# Words of results that version 0.1 wrote.
RENAMED = {
    "student.init=": "student.initial_weights=",
    "teacher and guidance": "teacher and feature distillation",
    "stored labels": "soft labels",
}


def read_results(path: Path) -> Any:
    """Reads a results file, with the words of version 0.1 replaced."""
    text = path.read_text()
    for old, new in RENAMED.items():
        text = text.replace(old, new)
    return json.loads(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("results"))
    options = parser.parse_args()
    parts = ["# Performance", "Made by `python benchmarks/performance.py` from the JSON files beside it."]
    on_gpu = False
    for path in sorted(options.results.rglob("*.json")):
        found = read_results(path)
        section = SECTIONS.get(found.get("benchmark", path.stem)) if isinstance(found, dict) else None
        if section is not None:
            on_gpu |= section is gpu
            parts += section(found)
            for picture in (path.with_suffix(end) for end in (".png", ".svg")):
                if picture.exists():
                    parts.append(f"![{path.stem}]({picture.relative_to(options.results)})")
    parts += [] if on_gpu else gpu_not_measured()
    parts += [*accuracy_against_throughput(options.results), *published()]
    (options.results / "performance.md").write_text("\n\n".join(parts) + "\n")
    print(options.results / "performance.md")


if __name__ == "__main__":
    main()
