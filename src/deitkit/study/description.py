"""What a study consists of: arms to train, rows to report, claims to decide.

A study is data, not code. Its arms are settings that vary over settings that are held, and each claim of the
paper is a difference between rows. Sizes come from a preset, so that one description fits a laptop and a
cluster. DeiT is Touvron et al., arXiv 2012.12877.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import SettingError

EVERY_PRESET = ("quick", "standard", "full")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One training, repeated over seeds. The name is also the name of its folder.

    epochs, images, image_size: factors of the preset's values, so that an arm means the same at every preset.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)  # settings that vary, "section.key" to value
    epochs: float = 1.0
    images: float = 1.0
    image_size: float = 1.0  # rounded to whole patches
    starts_from: str | None = None  # arm whose run with the same seed is fine-tuned
    taught_by: str | None = None  # arm whose run with the same seed is the teacher
    convnet: bool = False  # trains a convnet of similar cost from scratch instead of the student
    on_target: bool = False  # trains on the second data set
    presets: tuple[str, ...] = EVERY_PRESET

    @property
    def needs(self) -> tuple[str, ...]:
        """The arms whose runs must finish first."""
        return tuple(name for name in (self.starts_from, self.taught_by) if name)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table: a metric of an arm's runs, and the paper's value in percent."""

    name: str
    arm: str
    metric: str = "top1"
    series: str = ""  # rows of a series are one line in the figure
    paper: float | None = None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement of the paper, which holds if the weighted sum of rows is above zero."""

    says: str  # a clause, such as "hard labels teach better than soft ones"
    contrast: Mapping[str, float]  # row to weight


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The x-axis of the figure."""

    column: str  # of runs.csv
    label: str
    log: bool = False


@dataclass(frozen=True, kw_only=True)
class Size:
    """The size of one run of an arm whose factors are 1."""

    epochs: int
    images: int | None = None  # at most, for training; None: all


@dataclass(frozen=True, kw_only=True)
class Study:
    """A finding of the paper, and how to measure it.

    To add one, write a module in `catalogue/` that defines `STUDY`; `deitkit study` and the tests follow.
    """

    name: str
    title: str
    source: str  # paper, section or table
    sizes: Mapping[str, Size]  # by preset
    arms: tuple[Arm, ...]
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...]
    recipe: str | None = None  # None: the preset's
    held: Mapping[str, Any] = field(default_factory=dict)  # settings of all arms, over the preset's
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
        """The arms of a preset."""
        return tuple(arm for arm in self.arms if preset in arm.presets)

    def rows_of(self, preset: str) -> tuple[Row, ...]:
        """The rows of a preset's arms."""
        arms = {arm.name for arm in self.arms_of(preset)}
        return tuple(row for row in self.rows if row.arm in arms)

    def claims_of(self, preset: str) -> tuple[Claim, ...]:
        """The claims that a preset's rows can decide."""
        rows = {row.name for row in self.rows_of(preset)}
        return tuple(claim for claim in self.claims if set(claim.contrast) <= rows)

    def paper_gap(self, claim: Claim) -> float | None:
        """The claim's difference in the paper, in points; None if the paper lacks a row."""
        paper = {row.name: row.paper for row in self.rows}
        terms = [(paper[name], weight) for name, weight in claim.contrast.items()]
        numbers = [value * weight for value, weight in terms if value is not None]
        return sum(numbers) if len(numbers) == len(terms) else None

    def refuse_varied(self, keys: Iterable[str], also: Container[str]) -> None:
        """Raises SettingError if a setting in `keys` is set by an arm, or is in `also`."""
        for key in keys:
            if key in ("train.seed", "train.baseline"):
                raise SettingError(f"a study sets {key} itself; choose seeds with --seeds")
            if key in also or any(key in arm.settings for arm in self.arms):
                raise SettingError(f"the study {self.name!r} varies {key} itself; leave it out of --set")
