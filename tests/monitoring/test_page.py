"""The page in a real browser: every phase, at two widths, light and dark; updates in place; a run that is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from threading import Thread

import pytest

from replicator.config.monitoring import Address
from replicator.monitoring.server import serving, serving_several
from replicator.testing.servers.programs import ServerMissing, free_port
from tests.monitoring.browser import Browser, program
from tests.monitoring.phases import HOSTILE, SUBJECT, monitor, stories
from tests.servers.starting import not_tested

DESKTOP, PHONE = 1180, 390


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A browser; without one a loud skip, and a failure where CI promises it."""
    try:
        program()
    except ServerMissing as e:
        not_tested(str(e))
    with Browser() as browser:
        yield browser


def test_every_phase_is_shown_without_complaints_and_fits_at_every_width(chromium: Browser) -> None:
    for name, story in stories().items():
        address = Address("127.0.0.1", free_port())
        with serving(monitor(story), address):
            for width, dark in product((DESKTOP, PHONE), (False, True)):
                chromium.size(width, dark=dark)
                chromium.open(f"http://{address}/")
                assert chromium.run("document.documentElement.scrollWidth") <= width, f"{name} at {width}"
                assert chromium.run("getComputedStyle(document.body).maxWidth") == "1180px", "the style sheet is used"
                light = (
                    chromium.run("getComputedStyle(document.documentElement).backgroundColor") == "rgb(245, 246, 248)"
                )
                assert light is not dark
            chromium.leave()
    assert chromium.complaints == []


SHOWN = {
    "starting": ("starting", "The run is starting"),
    "backfill": ("backfill", "1,284,000 of about 2,050,000 items"),
    "catching-up": ("catching up", "31 min 40 s behind and catching up"),
    "live": ("live", "every change up to 0.4 s ago"),
    "waiting": ("catching up, waiting", "connection refused"),
    "gap": ("gap", "replicator resync orders.yaml"),
    "verifying": ("live, verifying", "verifying: 37 %, 1,420,118 items, 0 differences"),
    "differences": ("live", "replicator verify orders.yaml --repair"),
    "workers": ("live, waiting", "2 of 4 up, on 3 nodes"),
    "parked": ("live", "replicator parked retry orders.yaml --all"),
    "history": ("live", "tells the table since"),
    "stalled": ("catching up, stalled", "no progress for 41 s"),
}


@pytest.mark.parametrize("name", stories())
def test_a_phase_is_named_and_says_what_to_know(chromium: Browser, name: str) -> None:
    address = Address("127.0.0.1", free_port())
    with serving(monitor(stories()[name]), address):
        chromium.open(f"http://{address}/")
        label, words = SHOWN[name]
        (pill,) = chromium.texts(".pill")
        (text,) = chromium.texts("#page")
        chromium.leave()

    assert pill == label
    assert words in text


def test_several_pipelines_are_shown_without_complaints_at_every_width(chromium: Browser) -> None:
    address = Address("127.0.0.1", free_port())
    with serving_several(address) as board, ExitStack() as shown:
        for name in ("live", "gap"):  # a thread shows one pipeline, so each story here needs a board's slot of its own
            subject = replace(SUBJECT, pipeline=f"a-shop-with-a-long-name.{name}")
            slot = Thread(target=shown.enter_context, args=(board.running(monitor(stories()[name], subject)),))
            slot.start()
            slot.join()
        for width, dark in product((DESKTOP, PHONE), (False, True)):
            chromium.size(width, dark=dark)
            chromium.open(f"http://{address}/")
            assert chromium.run("document.documentElement.scrollWidth") <= width, width
        assert chromium.texts(".pill") == ["gap", "live"]
        chromium.run("document.querySelector('a').click(); true")
        chromium.until("document.title === 'a-shop-with-a-long-name.gap: gap'")
        chromium.leave()
    assert chromium.complaints == []


def test_a_hostile_key_is_text_in_the_browser_too(chromium: Browser) -> None:
    address = Address("127.0.0.1", free_port())
    with serving(monitor(stories()["parked"]), address):
        chromium.open(f"http://{address}/")
        keys = chromium.texts("ul.parked .id")
        scripts = chromium.run("document.scripts.length")
        chromium.leave()

    assert keys[2] == '["<script>alert(1)</script>\\u202e\\u001b[31m"]' != HOSTILE
    assert scripts == 1


def test_the_page_updates_in_place_and_says_when_the_run_is_gone(chromium: Browser) -> None:
    address = Address("127.0.0.1", free_port())
    chromium.size(DESKTOP)
    told = stories()
    shown = monitor(told["live"])
    with serving(shown, address):
        chromium.open(f"http://{address}/")
        chromium.run("window.kept = document.querySelector('#shards .tree'); window.kept.focus(); true")
        shown.observe(told["waiting"].progress)
        chromium.until("document.querySelector('.pill').innerText === 'catching up, waiting'")
        assert chromium.run("document.title") == "orders: catching up, waiting"
        assert chromium.run("window.kept === document.querySelector('#shards .tree')"), "what is the same is kept"
        assert chromium.run("document.activeElement === window.kept")
        assert chromium.run("document.getElementById('lost').hidden")
    chromium.until("!document.getElementById('lost').hidden")

    assert "The run may have stopped. What you see is from 20:26:40 UTC" in chromium.texts("#lost")[0]
    assert chromium.texts(".pill") == ["no response"]
    assert chromium.run("document.title").startswith("stopped? orders")
    chromium.leave()


def test_values_can_be_read_off_the_charts(chromium: Browser) -> None:
    address = Address("127.0.0.1", free_port())
    with serving(monitor(stories()["catching-up"]), address):
        chromium.open(f"http://{address}/")
        box = chromium.run("JSON.parse(JSON.stringify(document.querySelector('#chart-1 svg').getBoundingClientRect()))")
        chromium.call("Input.dispatchMouseEvent", type="mouseMoved", x=box["x"] + 3, y=box["y"] + 20)
        (reading,) = chromium.texts("#chart-1 .reading")
        chromium.leave()

    assert reading.startswith("2 h 4")
    assert reading.endswith("UTC")
