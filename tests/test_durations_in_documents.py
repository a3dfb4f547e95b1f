"""What the documents say about lost requests is what the constants say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from replicator.state import APPLIED_WITHIN, LONGEST_IN_DOUBT

ROOT = Path(__file__).parent.parent
WORDS = {"five": 5, "5": 5, "six": 6, "6": 6}
# Clocks that differ are another subject, and so are heartbeats of the future.
SUBJECT = re.compile(r"tombstone|lost response|late\b|kill|in flight|the hook again")
MINUTES = re.compile(r"\b(five|six|5|6)\s+(?:more\s+)?minutes")
SINCE_SENT = re.compile(r"within 5 minutes|more than 5 minutes late|applied five minutes after")


def sentences() -> list[tuple[str, str]]:
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    texts = ((path, " ".join(path.read_text().split())) for path in paths)
    return [
        (str(p.relative_to(ROOT)), s) for p, text in texts for s in re.split(r"(?<=[.:;|]) ", text) if MINUTES.search(s)
    ]


ABOUT_REQUESTS = [(where, s) for where, s in sentences() if SUBJECT.search(s) and "clock" not in s]


@pytest.mark.parametrize(("where", "sentence"), ABOUT_REQUESTS, ids=[where for where, _ in ABOUT_REQUESTS])
def test_the_documents_name_the_times_of_the_in_doubt_window(where: str, sentence: str) -> None:
    seconds = APPLIED_WITHIN if SINCE_SENT.search(sentence) else LONGEST_IN_DOUBT
    found = {WORDS[word] * 60 for word in MINUTES.findall(sentence)}
    assert found == {seconds}, sentence


def test_the_sentences_are_found() -> None:
    assert len(ABOUT_REQUESTS) >= 12
    assert {"docs/targets/dynamodb.md", "docs/guarantees.md", "docs/verifying.md"} <= {
        where for where, _ in ABOUT_REQUESTS
    }
