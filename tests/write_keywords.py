"""Writes src/deitkit/keywords.py from the settings that config.py declares.

Run it after a change of a setting: python -m tests.write_keywords
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import get_type_hints

from deitkit.config import Config

FILE = Path(__file__).parents[1] / "src" / "deitkit" / "keywords.py"
HEAD = '''"""Settings as keyword arguments `section__key`, for type checkers and completion.

Written by tests/write_keywords.py from the declarations in config.py.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from .config import BackendName
from .settings import Auto


class Keywords(TypedDict, total=False):
    """`**settings` of `train`, `pretrain` and `label`; `deitkit settings` prints them with their defaults."""
'''


def keywords() -> str:
    """The content of the file."""
    lines = [HEAD]
    for section, cls in get_type_hints(Config).items():
        if not dataclasses.is_dataclass(cls):
            continue
        for field in dataclasses.fields(cls):
            lines.append(f"    {section}__{field.name}: {accepted(str(field.type))}".replace("'", '"'))
            lines.append(f'''    """{field.metadata["help"]}"""''')
    return "\n".join(lines) + "\n"


def accepted(declared: str) -> str:
    """The type that may be given; one number stands for a tuple of equal ones."""
    same = re.search(r"tuple\[(\w+)(?:, (?:\1|\.\.\.))+\]", declared)
    return f"{same[1]} | {declared}" if same else declared


if __name__ == "__main__":
    FILE.write_text(keywords(), encoding="utf-8")
