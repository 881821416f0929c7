"""Copies finished studies into results/, and compares them with the paper's numbers.

    deitkit study NAME DATA --out runs/studies/NAME/DATASET     # for each study and data set
    python benchmarks/findings.py [--studies runs/studies] [--results results/studies]

Copies summary, figure and CSV of each study, and settings, log and results of each run, without weights
and paths of the machine. Then writes results/studies/README.md from all summaries: rows and claims of
each study, with one column per data set.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from deitkit.study.catalogue import STUDIES
from deitkit.study.description import Study
from deitkit.study.summary import mean_and_spread

WHOLE = ("summary.md", "summary.json", "runs.csv", "figure.svg", "study.json")
OF_A_RUN = ("config.json", "metrics.jsonl", "results.json")
Summaries = dict[str, dict[str, Any]]  # data set to summary.json


def publish(source: Path, target: Path) -> None:
    """Copies the files of one study that exist; without finished runs there is no figure."""
    study = json.loads((source / "study.json").read_text())
    roots = [str(Path(path).parent) + "/" for path in (study["data"], study["target"]) if path]
    roots += [str(source.resolve()) + "/", str(source) + "/"]
    files = [path for name in WHOLE if (path := source / name).exists()]
    files += [path for name in OF_A_RUN for path in source.glob(f"runs/*/*/{name}")]
    for file in files:
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        text = file.read_text(encoding="utf-8")
        for root in roots:
            text = text.replace(root, "")
        copy.write_text(text, encoding="utf-8")


def difference(claim: dict[str, Any] | None) -> str:
    """The mean difference over seeds, its interval, and the verdict."""
    if claim is None or "mean" not in claim:
        return "not measured"
    if claim["low"] is None:
        return f"{claim['mean']:+.1f}, {claim['verdict']}"
    verdict = {"fails": "does not hold"}.get(claim["verdict"], claim["verdict"])
    return f"{claim['mean']:+.1f} ({claim['low']:+.1f} to {claim['high']:+.1f}), **{verdict}**"


def section(study: Study, summaries: Summaries) -> list[str]:
    """Rows and claims of one study, with one column per data set."""
    sets = list(summaries)
    lines = [f"## {study.title} (`{study.name}`)", "", f"{study.source}.", ""]
    links = [f"[{name}]({study.name}/{name}/summary.md) ({summaries[name]['preset']})" for name in sets]
    lines += [f"Runs: {', '.join(links)}.", ""]
    lines += [f"| top-1, % | the paper | {' | '.join(sets)} |", "|---|---|" + "---|" * len(sets)]
    for row in study.rows:
        cells = []
        for found in summaries.values():
            values = next((list(r["top1"].values()) for r in found["rows"] if r["name"] == row.name), [])
            cells.append(mean_and_spread(values))
        if any(cells):
            paper = "" if row.paper is None else f"{row.paper:.1f}"
            lines.append(f"| {row.name} | {paper} | {' | '.join(cells)} |")
    lines += ["", f"| claim | the paper | {' | '.join(sets)} |", "|---|---|" + "---|" * len(sets)]
    for claim in study.claims:
        per_set = [
            next((c for c in found["claims"] if c["says"] == claim.says), None)
            for found in summaries.values()
        ]
        if any(per_set):
            gap = study.paper_gap(claim)
            paper = "" if gap is None else f"{gap:+.1f}"
            lines.append(f"| {claim.says} | {paper} | {' | '.join(map(difference, per_set))} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--studies", type=Path, default=Path("runs/studies"))
    parser.add_argument("--results", type=Path, default=Path("results/studies"))
    options = parser.parse_args()
    for summary in sorted(options.studies.glob("*/*/summary.json")):
        source = summary.parent
        target = options.results / source.relative_to(options.studies)
        fresh = target.with_name(f"{target.name}.part")
        shutil.rmtree(fresh, ignore_errors=True)
        publish(source, fresh)
        shutil.rmtree(target, ignore_errors=True)  # only now, so that a failure loses nothing
        fresh.rename(target)
    lines = [
        "# Studies: these numbers and the paper's",
        "",
        "Made by `python benchmarks/findings.py` from the summaries in the folders beside this file. Means "
        "and standard deviations over seeds; a claim is the mean of differences paired over seeds, with the "
        "95 % bootstrap interval, and its verdict (docs/studies.md says how it is reached).",
        "",
    ]
    for study in STUDIES.values():
        found = {
            path.parent.name: json.loads(path.read_text())
            for path in sorted(options.results.glob(f"{study.name}/*/summary.json"))
        }
        if found:
            lines += section(study, found)
    (options.results / "README.md").write_text("\n".join(lines), encoding="utf-8")
    print(options.results / "README.md")


if __name__ == "__main__":
    main()
