"""What a teacher's spec says of a weights file, and the file's tensors in a model."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from ...errors import WeightsError


def split_path(rest: str) -> tuple[str, Path | None]:
    """`NAME[@PATH]` as name and path; raises DeitkitError where the path leads nowhere."""
    name, _, path = rest.partition("@")
    if path and not Path(path).is_file():
        raise WeightsError(f"the teacher's weights {path} do not exist; give the path of a weights file")
    return name, Path(path) if path else None


def load_by_name(model: nn.Module, state: dict[str, Tensor], head: str, path: Path, name: str) -> bool:
    """Loads `state`; whether it holds the head, whose keys start with `head`.

    A file without the head is welcome; one that lacks, or adds, anything else is refused.
    """
    own = model.state_dict()
    without = [key for key in own if key not in state]
    foreign = [key for key in state if key not in own or own[key].shape != state[key].shape]
    if [key for key in without if not key.startswith(head)] or foreign:
        raise WeightsError(f"{path} does not hold weights of {name}; give the matching file")
    model.load_state_dict(state, strict=False)
    return not without
