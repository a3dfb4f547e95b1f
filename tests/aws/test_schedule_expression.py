"""How rarely an expression of EventBridge invokes its target."""

from __future__ import annotations

import math

import pytest

from replicator.aws.schedule_expression import longest_pause
from replicator.operations.lambda_template import OFTEN


@pytest.mark.parametrize(
    ("expression", "hours"),
    [
        (OFTEN, 0.25),
        ("rate(1 minute)", 1 / 60),
        ("rate(1 hour)", 1.0),
        ("rate(2 hours)", 2.0),
        ("rate(1 day)", 24.0),
        ("rate(7 days)", 168.0),
        (" rate( 5  minutes ) ", 5 / 60),
        ("at(2026-01-31T12:00:00)", math.inf),
        ("cron(0/15 * * * ? *)", 0.25),
        ("cron(*/20 * * * ? *)", 1 / 3),
        ("cron(0,30 * ? * * *)", 0.5),
        ("cron(10 0/6 * * ? *)", 6.0),
        ("cron(0 8-18 * * ? *)", 14.0),
        ("cron(0 22-4 * * ? *)", 18.0),
        ("cron(30 9 * * ? *)", 24.0),
        ("cron(0 6,20 * * ? *)", 14.0),
        ("cron(0 * ? * MON-SUN *)", 1.0),
        ("cron(0 * ? * sun,mon-sat *)", 1.0),
        ("cron(0 * 1/1 JAN-DEC ? *)", 1.0),
        ("cron(0 * ? * MON-FRI *)", 25.0),
        ("cron(0 * ? * FRI-MON *)", 25.0),
        ("cron(0 * 1-30 * ? *)", 25.0),
        ("cron(0 * * 2/2 ? *)", 25.0),
        ("cron(0 * L * ? *)", 25.0),
        ("cron(0 * ? * 6#3 *)", 25.0),
    ],
)
def test_the_longest_pause_between_two_invocations_is_told(expression: str, hours: float) -> None:
    """At least, where days are left out."""
    found = longest_pause(expression)
    assert found == pytest.approx(hours)


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "rate",
        "rate()",
        "rate(15)",
        "rate(x minutes)",
        "rate(-1 minutes)",
        "rate(15 fortnights)",
        "cron()",
        "cron(0 * * * ?)",
        "cron(0 * * * ? 2026)",
        "cron(X * * * ? *)",
        "cron(0 , * * ? *)",
        "cron(0 a-b * * ? *)",
        "every(5 minutes)",
    ],
)
def test_nothing_is_said_of_an_expression_of_another_form(expression: str) -> None:
    assert longest_pause(expression) is None
