"""Decides the claims of a study, and writes the paragraph that sums them up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .description import Claim, Study
from .records import MeasuredRow
from .statistics import FEWEST_SEEDS, Comparison, adjust, compare

_SAYS = {
    "holds": "holds here",
    "leans": "leans towards the paper here, but is not settled",
    "undecided": "is undecided here",
    "leans against": "leans against the paper here, but is not settled",
    "fails": "does not hold here: the difference has the other sign",
    "unknown": "cannot be judged yet",
}
_COUNTED = {
    "holds": "hold",
    "leans": "lean towards the paper, not settled",
    "undecided": "undecided",
    "leans against": "lean against the paper, not settled",
    "fails": "do not hold",
    "unknown": "cannot be judged",
}


@dataclass(frozen=True)
class Decision:
    """A claim, the seeds for which all its rows are measured, and the comparison over them; None if none."""

    claim: Claim
    seeds: tuple[int, ...]
    comparison: Comparison | None

    @property
    def verdict(self) -> str:
        return "unknown" if self.comparison is None else self.comparison.verdict


def decide(claims: Sequence[Claim], rows: Sequence[MeasuredRow]) -> list[Decision]:
    """Decides each claim on the seeds that all its rows have; adjusts p-values over all claims (Holm)."""
    values = {measured.row.name: measured.values for measured in rows}
    decisions: list[Decision] = []
    for claim in claims:
        by_seed = [values.get(name, {}) for name in claim.contrast]
        seeds = tuple(sorted(set.intersection(*map(set, by_seed))))
        differences = [
            sum(weight * values[name][seed] for name, weight in claim.contrast.items()) for seed in seeds
        ]
        decisions.append(Decision(claim, seeds, compare(differences) if seeds else None))
    adjusted = iter(adjust([d.comparison for d in decisions if d.comparison]))
    return [Decision(d.claim, d.seeds, next(adjusted) if d.comparison else None) for d in decisions]


def paragraph(study: Study, decisions: Sequence[Decision]) -> str:
    """Says for each claim whether it holds, and with what confidence."""
    sentences = [_opening(study, decisions)]
    sentences += [_sentence(study, decision) for decision in decisions]
    if any(decision.verdict != "unknown" for decision in decisions):
        sentences.append(
            "Differences are paired over seeds and in points of top-1; intervals are 95 % bootstrap "
            "intervals of the mean, p is a paired t-test's, adjusted for the number of claims (Holm). A "
            "claim holds if the interval is above zero and p is below 0.05."
        )
    return " ".join(sentences)


def _opening(study: Study, decisions: Sequence[Decision]) -> str:
    count = Counter(decision.verdict for decision in decisions)
    judged = len(decisions) - count["unknown"]
    if judged == 0:
        return (
            f"Nothing can be claimed about {study.source}: no comparison has {FEWEST_SEEDS} seeds, which the "
            "spread needs at least."
        )
    counts = ", ".join(f"{words}: {count[verdict]}" for verdict, words in _COUNTED.items() if count[verdict])
    return f"Claims of {study.source}, on this data ({len(decisions)} in all): {counts}."


def _sentence(study: Study, decision: Decision) -> str:
    says = decision.claim.says[0].upper() + decision.claim.says[1:]
    found = decision.comparison
    gap = study.paper_gap(decision.claim)
    paper = "" if gap is None else f"; the paper: {gap:+.1f}"
    if found is None:
        return f"“{says}” {_SAYS['unknown']}: a run that it needs is missing{paper}."
    seeds = f"{len(decision.seeds)} seed{'s' if len(decision.seeds) > 1 else ''}"
    if found.low is None or found.high is None or found.p is None:
        return f"“{says}” {_SAYS['unknown']}: {found.mean:+.1f} on {seeds}{paper}."
    p = "p < 0.001" if found.p < 0.001 else f"p = {found.p:.3f}"
    interval = f"{found.low:+.1f} to {found.high:+.1f}"
    return f"“{says}” {_SAYS[found.verdict]}: {found.mean:+.1f} ({interval}, {seeds}, {p}{paper})."
