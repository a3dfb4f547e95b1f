"""In which scenarios a wrong design can show, and scenarios in which it shows more often than as drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tests.simulation.scenario import LEAKING, PARKING, PESTERING, RATES, WIDENING, Scenario

Where = Callable[[Scenario], bool]
Shape = Callable[[Scenario], Scenario]


def anywhere(_: Scenario) -> bool:
    return True


def with_hook(*names: str) -> Where:
    return lambda s: s.hook in names


def removes(s: Scenario) -> bool:
    """Whether tables are removed while a run writes to them."""
    return "remove" in s.rates


def trims(s: Scenario) -> bool:
    return s.trims


def over_months(s: Scenario) -> bool:
    return s.months


def without_transactions(s: Scenario) -> bool:
    return s.index


def with_transactions(s: Scenario) -> bool:
    return not s.index


def with_refusals(s: Scenario) -> bool:
    return s.index and s.refuses


def as_drawn(drawn: Scenario) -> Scenario:
    return drawn


def exporting(drawn: Scenario) -> Scenario:
    """Items come from exports, beside writes; people resync, and runs die."""
    rates = {**RATES, "write": 1.0, "resync": 0.03, "roll": 0.05}
    return replace(drawn, exports=True, trims=False, months=False, rates=rates)


def dying_exports(drawn: Scenario) -> Scenario:
    """Runs die while they read files of many items each."""
    rates = {"write": 0.2, "die": 0.2, "resync": 0.02}
    return replace(drawn, exports=True, months=False, keys=25, steps=150, items_a_page=1, segments=1, rates=rates)


def spoiled_exports(drawn: Scenario) -> Scenario:
    """Files of exports are overwritten with other values, and restored, while they are read."""
    rates = {"write": 0.1, "spoil": 0.3, "resync": 0.05, "pause": 0.05, "jump": 0.01}
    return replace(drawn, exports=True, hook=None, months=False, items_a_page=1, steps=150, rates=rates)


def existing_exports(drawn: Scenario) -> Scenario:
    """Items come from exports that people made earlier; shards split, and listings lie."""
    rates = {"write": 0.6, "split": 0.1, "roll": 0.1, "lie": 0.1, "resync": 0.1, "pause": 0.05, "restart": 0.05}
    drawn = replace(drawn, exports=True, existing=True, hook=None, trims=False, months=False, keeps_expired=False)
    return replace(drawn, steps=60, rates=rates)


def tables_made_again(drawn: Scenario) -> Scenario:
    """Many items, a page each, and the table is deleted and created again while they are scanned."""
    rates = {"write": 0.8, "recreate": 0.03, "resync": 0.02, "die": 0.003}
    plain = replace(drawn, exports=False, existing=False, gap_exports=False, trims=False, months=False, cron=False)
    return replace(plain, keys=25, steps=150, segments=2, items_a_page=1, slow=0.3, rates=rates)


def slow_scan(drawn: Scenario) -> Scenario:
    """Many items, a page each, beside many deletes; answers are long on their way."""
    rates = {"write": 1.0, "die": 0.003}
    return replace(drawn, index=False, keys=25, steps=150, items_a_page=1, records_a_page=7, slow=0.3, rates=rates)


def hours_skipped(drawn: Scenario) -> Scenario:
    """Time passes in jumps of hours, shards come and go, and runs end."""
    rates = {**RATES, "jump": 0.04, "split": 0.06, "roll": 0.06, "trim": 0.0, "die": 0.05}
    return replace(drawn, trims=True, steps=200, records_a_page=3, rates=rates)


def resyncs_with_losses(drawn: Scenario) -> Scenario:
    """Requests are lost, runs die, and people resync."""
    rates = {**RATES, "write": 1.0, "lost": 0.1, "late": 0.1, "die": 0.04, "resync": 0.05, "straggle": 0.05}
    return replace(drawn, index=True, keys=15, steps=60, rates=rates)


def requested_resyncs(drawn: Scenario) -> Scenario:
    """Others change documents by hand, and people request a resync of their items while these go on changing."""
    rates = {"write": 0.8, "request items": 0.15, "request a resync": 0.005, "die": 0.01, "pause": 0.01, "expire": 0.05}
    return replace(drawn, hook=None, view="NEW_AND_OLD_IMAGES", keys=6, steps=150, pace=0.3, slow=0.3, rates=rates)


def requested_resyncs_beside_deletes(drawn: Scenario) -> Scenario:
    """Many items are written and deleted while some are read one by one, and answers are long on their way."""
    rates = {"write": 1.0, "burst": 0.1, "request items": 0.02}
    plain = replace(drawn, hook=None, view="NEW_AND_OLD_IMAGES", refuses=False, trims=False, months=False, cron=False)
    busy = replace(plain, index=False, keys=25, steps=300, shards=3, items_a_page=1, records_a_page=7, rates=rates)
    return replace(busy, pace=1.0, slow=0.3, hasty=0.1)


def lost_requests(drawn: Scenario) -> Scenario:
    """Many requests are lost, of one run that nothing else disturbs for long, to an engine that forgets."""
    rates = {"write": 0.8, "lost": 0.15, "die": 0.003, "pause": 0.004, "unanswered": 0.02, "restart": 0.05}
    return replace(drawn, index=True, forgetful=True, keys=12, steps=180, pace=0.3, rates=rates)


def resyncs_of_parked_items(drawn: Scenario) -> Scenario:
    """Items are parked when people resync, long after their last change, and the target takes them later."""
    rates = {"write": 0.4, "pause": 0.15, "resync": 0.04, "relent": 0.02, "retry": 0.1}
    return replace(drawn, hook="rekeyed", view="NEW_AND_OLD_IMAGES", refuses=True, keys=8, steps=100, rates=rates)


def retries_beside_a_run(drawn: Scenario) -> Scenario:
    """What the target refused is retried beside a run, and removed soon after; the engine forgets deletes."""
    rates = {"write": 0.6, "relent": 0.03, "retry again": 0.1, "pause": 0.01, "restart": 0.1, "die": 0.002}
    return replace(drawn, hook=None, index=True, forgetful=True, refuses=True, keys=8, steps=150, pace=2.0, rates=rates)


def late_retries(drawn: Scenario) -> Scenario:
    """Items change often while they are parked, and seldom once the target takes them, so that a retry stores them."""
    rates = {"write": 0.4, "retry": 0.25, "relent": 0.015, "pause": 0.05}
    return replace(drawn, hook="rekeyed", view="NEW_AND_OLD_IMAGES", refuses=True, keys=8, steps=150, rates=rates)


def repeated_decisions(drawn: Scenario) -> Scenario:
    """People decide about few parked items again and again, beside a run that parks them again and again."""
    rates = {"write": 0.5, "retry": 0.1, "give up": 0.1, "decide later": 0.05, "relent": 0.02, "hammer": 0.02}
    return replace(drawn, hook="poisoned fan", view="NEW_AND_OLD_IMAGES", refuses=True, keys=3, steps=100, rates=rates)


def discards_around_sweeps(drawn: Scenario) -> Scenario:
    """People resync items that are parked, and give up what is parked again, before and behind the sweeps."""
    rates = {"write": 0.3, "pause": 0.1, "resync": 0.03, "give up": 0.15, "fix hook": 0.004, "die": 0.02}
    hook = "poisoned" if drawn.keys % 2 else "poisoned fan"
    return replace(
        drawn, hook=hook, view="NEW_AND_OLD_IMAGES", refuses=True, columns=False, keys=8, steps=60, rates=rates
    )


def slow_batches(drawn: Scenario) -> Scenario:
    """The target takes its time for large batches, and other runs take over in the middle of them."""
    rates = {"write": 0.8, "burst": 0.1, "dawdle": 0.1, "restart": 0.1}
    return replace(drawn, index=True, forgetful=True, keys=12, batch_rows=20, steps=100, pace=20.0, rates=rates)


def suspended_for_hours(drawn: Scenario) -> Scenario:
    """A machine sleeps for hours again and again, and shards that stay open answer with empty pages when it wakes."""
    rates = {"write": 0.4, "jump": 0.06, "blank": 0.15}
    return replace(drawn, months=False, trims=True, keys=6, steps=100, shards=1, rates=rates)


def hours_away(drawn: Scenario) -> Scenario:
    """Runs end, and others begin hours later, for months. Few changes: most shards have none."""
    rates = {"write": 0.15, "absence": 0.03}
    return replace(drawn, months=True, trims=True, cron=False, keys=4, steps=800, shards=1, pace=60.0, rates=rates)


def clock_steps(drawn: Scenario) -> Scenario:
    """The machine's clock is set again and again, and runs end. Little is written: shards are read up to the clock."""
    return replace(drawn, rates={"write": 0.3, "skew": 0.1, "die": 0.05, "roll": 0.02}, steps=100, shards=1)


def streams_enabled_again(drawn: Scenario) -> Scenario:
    """Much is written, and the stream is disabled and enabled again."""
    rates = {"write": 1.0, "disable": 0.02, "resync": 0.01}
    plain = replace(drawn, exports=False, existing=False, trims=False, months=False)
    return replace(plain, gap_exports=False, pace=1.0, rates=rates)


def short_runs(drawn: Scenario) -> Scenario:
    """Runs end soon after they began to read a shard, and what they had read is trimmed meanwhile."""
    rates = {**RATES, "write": 0.8, "roll": 0.1, "die": 0.15, "lost": 0.1, "trim": 0.1}
    return replace(drawn, index=True, trims=True, steps=120, records_a_page=7, rates=rates)


def clean_stops_after_losses(drawn: Scenario) -> Scenario:
    """Requests are lost, and runs end in good order soon after."""
    rates = {"write": 0.8, "late": 0.1, "lost": 0.05, "die": 0.002}
    return replace(drawn, index=True, forgetful=True, keys=6, steps=150, pace=0.3, rates=rates)


def runs_that_lose_a_response(drawn: Scenario) -> Scenario:
    """Short runs for hours, each of which loses a response, behind resyncs of runs that were killed."""
    return replace(drawn, index=True, cron=True, trims=False, keys=2, steps=600, rest=60.0, pace=2.0, rates=LEAKING)


def runs_that_lose_a_response_beside_retries(drawn: Scenario) -> Scenario:
    """The same runs beside people who retry every few minutes what the target refuses."""
    return replace(runs_that_lose_a_response(drawn), refuses=True, rates={**LEAKING, **PESTERING})


def added_columns(drawn: Scenario) -> Scenario:
    """Tables get columns, and runs die."""
    plain = replace(drawn, marks=False, refuses=False, keeps_expired=False, trims=False)
    return replace(plain, columns=True, rates=WIDENING)


def two_tables(drawn: Scenario) -> Scenario:
    """Documents in two tables, looked through one at a time."""
    return replace(drawn, index=True, forgetful=True, hook="fanned", view="NEW_AND_OLD_IMAGES", piece=1, keys=12)


def rarely_written_item(drawn: Scenario) -> Scenario:
    """One item, deleted and written again with long pauses between."""
    rates = {"write": 0.1, "pause": 0.1, "die": 0.02, "lost": 0.02}
    return replace(drawn, index=True, forgetful=False, keys=1, steps=150, rates=rates)


def takeovers(drawn: Scenario) -> Scenario:
    """Runs are stopped for minutes, and others take over meanwhile."""
    rates = {"write": 0.8, "takeover": 0.03, "pause": 0.15, "lost": 0.02, "unanswered": 0.02, "restart": 0.03}
    return replace(drawn, index=True, forgetful=True, steps=180, rates=rates)


def growing_sequence_numbers(s: Scenario) -> bool:
    """Sequence numbers become longer on the way."""
    return s.numbering.first is not None and nothing_parked(s)


def unordered_across_shards(s: Scenario) -> bool:
    """Sequence numbers of one shard say nothing about those of another."""
    return not s.numbering.across_shards and nothing_parked(s)


def nothing_parked(s: Scenario) -> bool:
    """Nothing is parked: its entries are named by versions as they should be."""
    return s.hook in (None, "kept", "rekeyed", "fanned") and not s.refuses


def has_at_timestamp(s: Scenario) -> bool:
    return s.dialect.at_timestamp


def remembers_deletes(s: Scenario) -> bool:
    """A target without transactions that remembers deletes by itself, as search engines do."""
    return s.index and not s.forgetful


def trimmed_shards(drawn: Scenario) -> Scenario:
    """Shards come and go for days and hold nothing for hours; listings show empty ones for long; runs stay away."""
    rates = {"write": 0.01, "split": 0.005, "absence": 0.005, "brink": 0.02, "pause": 0.05}
    return replace(
        drawn, months=True, trims=True, keys=4, steps=500, shards=1, pace=60.0, lingering=36 * 3600.0, rates=rates
    )


def kept_expired_items(drawn: Scenario) -> Scenario:
    """Items expire, and stay in the target."""
    view = "NEW_AND_OLD_IMAGES"
    return replace(drawn, keeps_expired=True, view=view, rates={"write": 0.5, "expire": 0.1, "die": 0.01})


def retries_with_another_hook(drawn: Scenario) -> Scenario:
    """Parked items are retried with another hook, and change again later."""
    rates = {"write": 0.5, "retry with another hook": 0.1, "relent": 0.02, "fix hook": 0.02, "die": 0.01}
    return replace(drawn, hook="rekeyed", view="NEW_AND_OLD_IMAGES", refuses=True, keys=4, steps=100, rates=rates)


def retries_of_scanned_items(drawn: Scenario) -> Scenario:
    """Pages of a scan, an item each, come behind later changes, and what the hook refused is retried."""
    rates = {"write": 0.5, "retry": 0.1, "fix hook": 0.02, "die": 0.003}
    return replace(
        drawn,
        hook="poisoned fan",
        view="NEW_AND_OLD_IMAGES",
        refuses=False,
        trims=False,
        months=False,
        cron=False,
        columns=False,
        keeps_expired=False,
        keys=25,
        steps=150,
        items_a_page=1,
        records_a_page=7,
        slow=0.3,
        rates=rates,
    )


def repaired_copies(drawn: Scenario) -> Scenario:
    """Others damage many documents, and a command repairs them while some items change and vanish."""
    rates = {"write": 0.015, "damage": 0.03, "repair": 0.1, "suspend repair": 0.05, "late": 0.001}
    return replace(
        drawn,
        hook=None,
        view="NEW_AND_OLD_IMAGES",
        refuses=False,
        trims=False,
        months=False,
        cron=False,
        columns=False,
        keeps_expired=False,
        keys=1 + drawn.keys % 2,
        steps=400,
        shards=1,
        pace=5.0,
        rates=rates,
    )


def marked_deletes(drawn: Scenario) -> Scenario:
    """Tables mark what is gone. Those with columns are as drawn: what is marked is compared with whole documents."""
    return replace(drawn, marks=not drawn.columns)


def marked_copies(drawn: Scenario) -> Scenario:
    """The same beside a command that repairs."""
    return replace(repaired_copies(drawn), marks=True)


def disturbed_cleanup(drawn: Scenario) -> Scenario:
    """Runs are replaced, and requests lost, in the middle of sweeps and purges."""
    rates = {
        "write": 0.8,
        "lost": 0.15,
        "late": 0.1,
        "straggle": 0.05,
        "cut short": 0.01,
        "overtake": 0.05,
        "doze": 0.05,
        "pause": 0.01,
        "restart": 0.05,
        "die": 0.01,
    }
    return replace(drawn, index=True, keys=4, steps=180, pace=0.3, rates=rates)


def repairing_gaps(drawn: Scenario) -> Scenario:
    """Gaps are repaired from exports, beside writes; records are trimmed, streams replaced, requests lost; runs die."""
    rates = {"write": 0.7, "trim": 0.03, "pause": 0.05, "die": 0.01, "disable": 0.004, "late": 0.03, "lost": 0.03}
    rates |= {"unanswered": 0.03, "takeover": 0.005, "roll": 0.02, "split": 0.01}
    kept = {name: rate for name, rate in drawn.rates.items() if name in PARKING}
    hook = drawn.hook if drawn.hook in ("kept", "poisoned") else None
    drawn = replace(drawn, gap_exports=True, hook=hook, keeps_expired=False, columns=False, existing=False)
    drawn = replace(drawn, trims=True, months=False, cron=False)
    return replace(drawn, steps=200, pace=max(drawn.pace, 0.3), rates={**kept, **rates})


def discards_before_gaps(drawn: Scenario) -> Scenario:
    """The same with few items that come and go, of which a rescan parks some whose changes are then discarded."""
    rates = {"write": 0.5, "expire": 0.2, "pause": 0.1, "die": 0.02, "strain": 0.1}
    rates |= {"resync": 0.03, "give up": 0.1, "disable": 0.02, "trim": 0.03}
    return replace(repairing_gaps(drawn), hook="poisoned", keys=3, shards=1, pace=0.3, steps=120, rates=rates)


def hooks_that_take_too_long(drawn: Scenario) -> Scenario:
    """A hook that chooses document ids takes too long for one image in ten or so, on items that change and go."""
    rates = {"write": 1.0, "expire": 0.1, "strain": 0.1, "restart": 0.03}
    return replace(
        drawn, hook="poisoned fan", view="NEW_AND_OLD_IMAGES", trims=False, months=False, keys=5, rates=rates
    )


def slow_hooks(drawn: Scenario) -> Scenario:
    """A hook that takes long for each item, while much is written and pages wait."""
    rates = {"write": 1.0, "burst": 0.2, "ponder": 0.05, "roll": 0.02}
    hook = drawn.hook or "kept"
    return replace(drawn, hook=hook, trims=False, months=False, refuses=False, records_a_page=2, steps=120, rates=rates)
