"""Which outputs of a teacher's pretrained head are the classes of a data set."""

from __future__ import annotations

import csv
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path

from timm.data import ImageNetInfo

from ..errors import WeightsError

_WORDNET_ID = re.compile(r"n\d{8}")


def recognise(classes: tuple[str, ...], outputs: tuple[str, ...] | None) -> tuple[int, ...] | None:
    """The output of each class, where every class is called as an output is; else None.

    An id of WordNet and ImageNet's name for it are the same where the folders are called by ids: a word
    such as "crane" may mean something else in another data set.
    """
    if outputs is None:
        return None
    # Names that are alike but for case and underscores must be met to the letter.
    alike = len({_key(name) for name in outputs}) < len(outputs)
    spelling: Callable[[str], str] = str if alike else _key
    places = {spelling(name): i for i, name in enumerate(outputs)}
    if all(_WORDNET_ID.fullmatch(name) for name in classes) and not set(classes) <= set(places):
        places = {_imagenet_id(name) or name: i for i, name in enumerate(outputs)}
    found = [places.get(spelling(name)) for name in classes]
    return None if None in found else tuple(i for i in found if i is not None)


def choose_outputs(
    asked: str, classes: tuple[str, ...], outputs: tuple[str, ...] | None, num_outputs: int, name: str
) -> tuple[int, ...]:
    """The output of each class as `teacher.classes` asks: "imagenet", or a JSON or CSV file.

    Raises DeitkitError, naming the class, for one that has no output, or shares one.
    """
    by_class = _from_imagenet(classes, outputs, name) if asked == "imagenet" else _from_file(Path(asked))
    chosen: list[int] = []
    for class_name in classes:
        if class_name not in by_class:
            where = "among ImageNet's ids and names" if asked == "imagenet" else f"in {asked}"
            raise WeightsError(f"the class {class_name!r} is not {where}; name it, or fit a new head")
        place = by_class[class_name]
        if not 0 <= place < num_outputs:
            raise WeightsError(
                f"the class {class_name!r} is output {place} in {asked}, and the teacher {name} has "
                f"{num_outputs} outputs, 0 to {num_outputs - 1}"
            )
        if place in chosen:
            twin = classes[chosen.index(place)]
            raise WeightsError(f"{twin!r} and {class_name!r} are the same output {place} of {name}")
        chosen.append(place)
    return tuple(chosen)


def _from_imagenet(classes: tuple[str, ...], outputs: tuple[str, ...] | None, name: str) -> dict[str, int]:
    ids = [_imagenet_id(output) for output in outputs or ()]
    if not any(ids):
        raise WeightsError(
            f"the outputs of the teacher {name} are not ImageNet's; give a file that maps classes to them"
        )
    places = {known: i for i, known in enumerate(ids) if known is not None}
    found = {class_name: _imagenet_id(class_name) for class_name in classes}
    return {class_name: places[id_] for class_name, id_ in found.items() if id_ in places}


def _from_file(path: Path) -> dict[str, int]:
    """`{"class": 7}` as JSON, or lines `class,7` as CSV with or without a first line of headings."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            rows = list(json.loads(text).items())
        else:
            rows = [(row[0].strip(), row[1]) for row in csv.reader(text.splitlines()) if row]
            if rows and not rows[0][1].strip().isdigit():
                rows = rows[1:]
        return {str(name): _whole(place) for name, place in rows}
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


def _whole(place: object) -> int:
    if isinstance(place, bool) or (isinstance(place, float) and not place.is_integer()):
        raise ValueError(f"{place} is no output number")
    return int(place)  # type: ignore[call-overload]


def _key(name: str) -> str:
    return re.sub(r"[\s_]+", " ", name).strip().casefold()


@functools.cache
def _imagenet_names() -> dict[str, str]:
    """ImageNet-1k's ids by id, whole name and single names; "crane", which is two, is neither."""
    info = ImageNetInfo()
    by_name: dict[str, str] = {}
    doubtful = set()
    for id_ in info.label_names():
        whole = info.label_name_to_description(id_)
        for name in {id_, whole, *whole.split(",")}:
            if by_name.setdefault(_key(name), id_) != id_:
                doubtful.add(_key(name))
    return {name: id_ for name, id_ in by_name.items() if name not in doubtful}


def _imagenet_id(name: str) -> str | None:
    return _imagenet_names().get(_key(name))
