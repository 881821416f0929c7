"""What a study is: arms that are trained, rows that are reported, claims that are decided.

A study is data, not code: it says what varies as settings over what is held, and by which differences
between rows the paper's finding is judged. Sizes come from a preset, so one description serves a
laptop and a cluster. DeiT is Touvron et al., arXiv 2012.12877.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import SettingError

EVERY_PRESET = ("quick", "standard", "full")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One training, repeated over seeds; its name is also its folder's.

    `epochs`, `images` and `image_size` multiply what the preset holds, so that an arm means the same
    at every preset.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # what varies, "section.key" to value
    epochs: float = 1.0
    images: float = 1.0
    image_size: float = 1.0  # rounded to whole patches
    starts_from: str | None = None  # fine-tunes the weights of that arm's run with the same seed
    taught_by: str | None = None  # its teacher is that arm's run with the same seed
    convnet: bool = False  # trains a convnet of like cost from scratch in the student's place
    on_target: bool = False  # trained on the second data set
    presets: tuple[str, ...] = EVERY_PRESET

    @property
    def needs(self) -> tuple[str, ...]:
        """The arms whose runs must be finished first."""
        return tuple(name for name in (self.starts_from, self.taught_by) if name)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: a column of an arm's runs, and what the paper has there, in percent."""

    name: str
    arm: str
    metric: str = "top1"
    series: str = ""  # rows of one series share a line in the figure
    paper: float | None = None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement of the paper that holds where a sum of weighted rows is above zero."""

    says: str  # a clause, such as "hard labels teach better than soft ones"
    contrast: Mapping[str, float]  # row to weight


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What the figure's rows are drawn over."""

    column: str  # of runs.csv
    label: str
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much one run of an arm with all factors at 1 trains."""

    epochs: int
    images: int | None = None  # at most so many training images; None: all


@dataclass(frozen=True, kw_only=True)
class Study:
    """A finding of the paper, and how it is measured again."""

    name: str
    title: str
    source: str  # where the paper has it
    sizes: Mapping[str, Size]  # by preset
    arms: tuple[Arm, ...]
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    recipe: str | None = None  # None: the preset's
    held: Mapping[str, Any] = field(default_factory=dict)  # over the preset's
    axis: Axis | None = None

    def __post_init__(self) -> None:
        known: set[str] = set()
        for arm in self.arms:
            assert set(arm.needs) <= known, f"{arm.name} needs an arm that does not come before it"
            known.add(arm.name)
        rows = {row.name for row in self.rows}
        assert {row.arm for row in self.rows} <= known, "a row names no arm"
        assert all(set(claim.contrast) <= rows for claim in self.claims), "a claim names no row"

    def arms_of(self, preset: str) -> tuple[Arm, ...]:
        """The arms that this preset trains."""
        return tuple(arm for arm in self.arms if preset in arm.presets)

    def rows_of(self, preset: str) -> tuple[Row, ...]:
        """The rows whose arms this preset trains."""
        arms = {arm.name for arm in self.arms_of(preset)}
        return tuple(row for row in self.rows if row.arm in arms)

    def claims_of(self, preset: str) -> tuple[Claim, ...]:
        """The claims that this preset's rows can decide."""
        rows = {row.name for row in self.rows_of(preset)}
        return tuple(claim for claim in self.claims if set(claim.contrast) <= rows)

    def paper_gap(self, claim: Claim) -> float | None:
        """The claim's difference in the paper, in points; None where it gives no number for a row."""
        paper = {row.name: row.paper for row in self.rows}
        terms = [(paper[name], weight) for name, weight in claim.contrast.items()]
        numbers = [value * weight for value, weight in terms if value is not None]
        return sum(numbers) if len(numbers) == len(terms) else None

    def refuse_varied(self, keys: Mapping[str, Any], also: Mapping[str, Any]) -> None:
        """Raises DeitkitError where a setting in `keys` is one that the arms, or `also`, decide."""
        for key in keys:
            if key in ("train.seed", "train.baseline"):
                raise SettingError(f"a study sets {key} itself; choose seeds with --seeds")
            if key in also or any(key in arm.settings for arm in self.arms):
                raise SettingError(f"the study {self.name!r} varies {key} itself; leave it out of --set")
