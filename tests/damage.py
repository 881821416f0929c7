"""Seeded damage to files, for readers that must refuse it with a sentence."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

OTHERS = (None, True, -1, 0, 1.5, 10**30, 1e308, "x", "", [], [1], {}, {"a": 1})


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    """Cut, flipped, repeated, removed or inserted bytes."""
    a, b = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    flipped = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    inserted = bytes(rng.randrange(256) for _ in range(rng.randint(1, 8)))
    changed = [content[:a], bytes(flipped), content[:b] + content[a:], content[:a] + content[b:]]
    return rng.choice([*changed, content[:a] + inserted + content[a:]])


def damaged_json(content: Any, rng: random.Random) -> Any:
    """The same with one value of another type, or one key fewer."""
    content = copy.deepcopy(content)
    node, place = content, None
    while isinstance(node, (dict, list)) and node and (place is None or rng.random() < 0.7):
        parent, place = node, rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        node = node[place]
    if place is None:
        return rng.choice(OTHERS)
    if isinstance(parent, dict) and rng.random() < 0.3:
        del parent[place]
    else:
        parent[place] = rng.choice(OTHERS)
    return content


def damage(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.6:
        path.write_text(json.dumps(damaged_json(json.loads(content), rng)), encoding="utf-8")
    elif path.suffix == ".jsonl" and rng.random() < 0.6:
        lines = content.decode().splitlines()
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(damaged_json(json.loads(lines[at]), rng))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif path.suffix == ".safetensors":
        header = 8 + int.from_bytes(content[:8], "little")
        path.write_bytes(damaged_bytes(content[:header], rng) + content[header:])
    else:
        path.write_bytes(damaged_bytes(content, rng))
