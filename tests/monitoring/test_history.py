"""What the page and the metrics say of the histories of a run's tables."""

from __future__ import annotations

from replicator.monitoring.view import view
from replicator.pipeline.past import told
from replicator.state import HistorySpan
from tests.monitoring.phases import NOW, monitor, stories
from tests.monitoring.test_run import metrics

DAY = 86_400.0


def test_the_metrics_say_since_when_each_history_tells_the_table_how_large_it_is_and_what_is_gone() -> None:
    samples = metrics(monitor(stories()["history"]).metrics.text().decode())
    of = {table: f'{{pipeline="orders",table="{table}"}}' for table in ("orders", "lines")}
    assert samples[f"replicator_history_since_timestamp_seconds{of['orders']}"] == NOW - 90 * DAY
    assert samples[f"replicator_history_unknown_seconds{of['orders']}"] == 5400
    assert samples[f"replicator_history_bytes{of['orders']}"] == 4_509_715_660
    assert samples[f"replicator_history_partitions{of['lines']}"] == 3
    assert [samples[f"replicator_history_lost{of[table]}"] for table in ("orders", "lines")] == [0, 1]


def test_the_page_has_a_card_for_each_history_and_a_message_for_what_is_gone() -> None:
    shown = view(monitor(stories()["history"]))
    assert [history.table for history in shown.histories] == ["orders", "lines"]
    assert "without 1 h 30 min in between; earlier changes are removed" in shown.histories[0].since
    assert shown.histories[0].size == "4.2 GB in 14 partitions"
    assert [(alarm.title, alarm.tone) for alarm in shown.alarms if alarm.title == "History lost"] == [
        ("History lost", "bad")
    ]


def test_a_run_without_a_history_has_no_such_metrics_and_no_card() -> None:
    seen = monitor(stories()["live"])
    assert "replicator_history" not in seen.metrics.text().decode()
    assert view(seen).histories == ()


def test_a_history_tells_the_times_since_it_began_that_are_kept_without_those_between_two_epochs() -> None:
    spans = {1024: HistorySpan(100.0), 1025: HistorySpan(300.0, known=250.0), 1026: HistorySpan(400.0, known=400.0)}
    assert told(spans, "orders", 0, None) == (100.0, 50.0)
    assert told(spans, "orders", 0, 280.0) == (280.0, 20.0)
    assert told(spans, "orders", 1025, None) == (300.0, 0.0)
    assert told({}, "orders", 0, None) == (None, 0.0)
