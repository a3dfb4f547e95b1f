"""Parts of docs/deploying.md."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "deploying.md"


def section(heading: str) -> str:
    """The text below a heading, up to the next one of its level or a higher one."""
    level = heading.partition(" ")[0]
    _, found, rest = PAGE.read_text().partition(f"\n{heading}\n")
    assert found, heading
    return re.split(rf"^#{{1,{len(level)}}} ", re.sub(r"^# /", "#/", rest, flags=re.MULTILINE), flags=re.MULTILINE)[0]


def blocks(language: str, heading: str = "") -> list[str]:
    text = section(heading) if heading else PAGE.read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def table(heading: str) -> list[list[str]]:
    """The rows of the table in a section, without its head."""
    rows = re.findall(r"^\| (.*) \|$", section(heading), re.MULTILINE)
    return [row.split(" | ") for row in rows[1:] if not row.startswith("---")]
