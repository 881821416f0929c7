"""README, CONTRIBUTING and docs: links lead somewhere; commands, settings and files that they name exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from deitkit.cli import app
from deitkit.config import describe_settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SUFFIXES = {"json", "onnx", "safetensors", "xml"}  # teacher.json is a file, not a setting
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code(page: Path) -> list[str]:
    """Lines of code blocks and spans of code, continued lines joined."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    return lines + [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", rest)]


def commands(page: Path) -> list[list[str]]:
    """Words of each `deitkit` command on the page."""
    written = [c for line in code(page) if (c := line.strip()).startswith("deitkit ")]
    return [shlex.split(re.sub(r"[\[\]]|\\?\|", " ", c), comments=True)[1:] for c in written]


@each_page
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(file), f"{page.name} links to {target}"


@each_page
def test_commands_have_their_options(page):
    group = typer.main.get_command(app)
    for words in commands(page):
        command = group
        while words and words[0] in getattr(command, "commands", {}):
            command, words = command.commands[words[0]], words[1:]
        options = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
        unknown = [word for word in words if word.startswith("--") and word not in options]
        assert command is not group or not words or words[0].startswith("-"), f"no command {words[0]}"
        assert not unknown, f"{page.name}: deitkit {command.name} has no {unknown[0]}"


@each_page
def test_settings_have_their_present_names(page):
    known = {setting.key for setting in describe_settings()}
    sections = {key.partition(".")[0] for key in known}
    for span in code(page):
        for section, key in re.findall(r"(?<![\w./-])([a-z]+)\.([a-z_0-9]+)(?![\w.(/])", span):
            if section in sections and key not in SUFFIXES:
                assert f"{section}.{key}" in known, f"{page.name} names the setting {section}.{key}"


@each_page
def test_files_that_are_named_exist(page):
    for span in code(page):
        for file in re.findall(r"(?<![\w./])(?:src|tests|benchmarks|examples)/[\w/-]+\.\w+", span):
            assert (ROOT / file).exists(), f"{page.name} names {file}"
