"""Which runs of a study one process makes, where several share the work."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ..errors import SettingError
from .plan import PlannedRun


def share_of(runs: Sequence[PlannedRun], index: int, count: int) -> list[PlannedRun]:
    """The runs of shard `index` (from 1) of `count`.

    Runs that depend on each other or share stored labels are in one shard.
    Chains of runs are dealt, the longest first, to the shard with the least to do. The result
    depends on nothing but the plan, so every process finds the same shares.
    """
    if not 1 <= index <= count:
        raise SettingError(
            f"there is no shard {index} of {count}; give one from 1/{count} to {count}/{count}"
        )
    loads, mine = [0.0] * count, []
    for chain in sorted(_chains(runs), key=lambda chain: -sum(run.seconds for run in chain)):
        least = min(range(count), key=loads.__getitem__)
        loads[least] += sum(run.seconds for run in chain)
        if least == index - 1:
            mine += chain
    return sorted(mine, key=list(runs).index)


def _chains(runs: Sequence[PlannedRun]) -> list[list[PlannedRun]]:
    """The runs in groups, of which none needs a run or labels of another."""
    chains: list[tuple[set[Hashable], list[PlannedRun]]] = []
    for run in runs:
        touched: set[Hashable] = {(name, run.seed) for name in (run.arm.name, *run.arm.needs)}
        if run.labels is not None:
            touched.add(run.labels.folder)
        joined = [chain for chain in chains if chain[0] & touched]
        chains = [chain for chain in chains if not chain[0] & touched]
        chains.append(
            (
                touched.union(*(names for names, _ in joined)),
                [other for _, others in joined for other in others] + [run],
            )
        )
    return [chain for _, chain in chains]
