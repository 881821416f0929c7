"""Which outputs of a teacher's pretrained head are the classes of the data."""

from __future__ import annotations

import csv
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path

from ..errors import WeightsError

_WORDNET_ID = re.compile(r"n\d{8}")


def match_classes(classes: tuple[str, ...], outputs: tuple[str, ...] | None) -> tuple[int, ...] | None:
    """The output of each class by name. None if any class is not among `outputs`, or if they are unknown.

    Case and underscores do not matter unless two outputs differ in them only. A WordNet id matches ImageNet's
    name for it only if all classes are ids: a word such as "crane" may mean something else in other data.
    """
    if outputs is None:
        return None
    ambiguous = len({_key(name) for name in outputs}) < len(outputs)
    spelling: Callable[[str], str] = str if ambiguous else _key
    indices = {spelling(name): i for i, name in enumerate(outputs)}
    if all(_WORDNET_ID.fullmatch(name) for name in classes) and not set(classes) <= set(indices):
        indices = {_imagenet_id(name) or name: i for i, name in enumerate(outputs)}
    found = [indices.get(spelling(name)) for name in classes]
    return None if None in found else tuple(i for i in found if i is not None)


def choose_outputs(
    wanted: str, classes: tuple[str, ...], outputs: tuple[str, ...] | None, num_outputs: int, name: str
) -> tuple[int, ...]:
    """The output of each class as `teacher.classes` says: "imagenet", or a JSON or CSV file.

    name: the teacher's, for messages. Raises WeightsError, naming the class, if it has no output or shares
    one.
    """
    by_class = _from_imagenet(classes, outputs, name) if wanted == "imagenet" else _from_file(Path(wanted))
    chosen: list[int] = []
    for class_name in classes:
        if class_name not in by_class:
            where = "among ImageNet's ids and names" if wanted == "imagenet" else f"in {wanted}"
            raise WeightsError(f"the class {class_name!r} is not {where}; name it, or fit a new head")
        index = by_class[class_name]
        if not 0 <= index < num_outputs:
            raise WeightsError(
                f"the class {class_name!r} is output {index} in {wanted}, and the teacher {name} has "
                f"{num_outputs} outputs, 0 to {num_outputs - 1}"
            )
        if index in chosen:
            other = classes[chosen.index(index)]
            raise WeightsError(f"{other!r} and {class_name!r} are the same output {index} of {name}")
        chosen.append(index)
    return tuple(chosen)


def imagenet_ids(num_outputs: int) -> tuple[str, ...] | None:
    """ImageNet-1k's WordNet ids for a model with 1000 unnamed outputs; else None."""
    from timm.data.imagenet_info import ImageNetInfo

    return tuple(ImageNetInfo().label_names()) if num_outputs == 1000 else None


def _from_imagenet(classes: tuple[str, ...], outputs: tuple[str, ...] | None, name: str) -> dict[str, int]:
    ids = [_imagenet_id(output) for output in outputs or ()]
    if not any(ids):
        raise WeightsError(
            f"the outputs of the teacher {name} are not ImageNet's; give a file that maps classes to them"
        )
    indices = {known: i for i, known in enumerate(ids) if known is not None}
    found = {class_name: _imagenet_id(class_name) for class_name in classes}
    return {class_name: indices[id_] for class_name, id_ in found.items() if id_ in indices}


def _from_file(path: Path) -> dict[str, int]:
    """`{"class": 7}` as JSON, or lines `class,7` as CSV with or without a header."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            rows = list(json.loads(text).items())
        else:
            rows = [(row[0].strip(), row[1]) for row in csv.reader(text.splitlines()) if row]
            if rows and not rows[0][1].strip().isdigit():
                rows = rows[1:]
        return {str(name): _integer(index) for name, index in rows}
    except FileNotFoundError:
        raise WeightsError(
            f"there is no file {path}; teacher.classes is imagenet, or a JSON or CSV file of class names "
            "and output numbers"
        ) from None
    except (OSError, ValueError, AttributeError, IndexError, TypeError) as error:
        raise WeightsError(
            f'{path} cannot be read as classes ({error}); give JSON such as {{"cat": 281, "dog": 207}}, '
            "or CSV lines such as cat,281"
        ) from None


def _integer(index: object) -> int:
    if isinstance(index, bool) or (isinstance(index, float) and not index.is_integer()):
        raise ValueError(f"{index} is no output number")
    number: int = int(index)  # type: ignore[call-overload]
    return number


def _key(name: str) -> str:
    return re.sub(r"[\s_]+", " ", name).strip().casefold()


@functools.cache
def _imagenet_names() -> dict[str, str]:
    """ImageNet-1k's ids by id, whole name and synonym; without synonyms of two ids, such as "crane"."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    by_name: dict[str, str] = {}
    ambiguous = set()
    for id_ in info.label_names():
        description = info.label_name_to_description(id_)
        for name in {id_, description, *description.split(",")}:
            if by_name.setdefault(_key(name), id_) != id_:
                ambiguous.add(_key(name))
    return {name: id_ for name, id_ in by_name.items() if name not in ambiguous}


def _imagenet_id(name: str) -> str | None:
    return _imagenet_names().get(_key(name))
