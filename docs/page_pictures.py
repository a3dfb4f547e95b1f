"""Takes pictures of the status page: in every phase, on a desktop and on a phone, light and dark.

``python -m docs.page_pictures FOLDER`` needs Chromium; without FOLDER, only docs/status-page.webp is drawn.
"""

from __future__ import annotations

import sys
from pathlib import Path

from replicator.config.monitoring import Address
from replicator.monitoring.server import serving
from replicator.testing.servers.programs import free_port
from tests.monitoring.browser import Browser
from tests.monitoring.phases import monitor, stories

DESKTOP, PHONE = 1180, 390  # pixels


def take(folder: Path) -> None:
    with Browser() as browser:
        for name, story in stories().items():
            address = Address("127.0.0.1", free_port())
            with serving(monitor(story), address):
                for width in (DESKTOP, PHONE):
                    for dark in (False, True):
                        browser.size(width, dark=dark)
                        browser.open(f"http://{address}/")
                        browser.picture(folder / f"{name}-{width}-{'dark' if dark else 'light'}.png")
        stopped(browser, folder)


def stopped(browser: Browser, folder: Path) -> None:
    """What a page shows whose run has ended."""
    address = Address("127.0.0.1", free_port())
    with serving(monitor(stories()["live"]), address):
        browser.open(f"http://{address}/")
    browser.until("!document.getElementById('lost').hidden")
    for width in (DESKTOP, PHONE):
        for dark in (False, True):
            browser.size(width, dark=dark)
            browser.picture(folder / f"stopped-{width}-{'dark' if dark else 'light'}.png")


def draw(path: Path) -> None:
    """The picture in the README."""
    address = Address("127.0.0.1", free_port())
    with Browser() as browser, serving(monitor(stories()["backfill"]), address):
        browser.size(1040, height=760)
        browser.open(f"http://{address}/")
        browser.picture(path)


if __name__ == "__main__":
    if sys.argv[1:]:
        take(Path(sys.argv[1]))
    else:
        draw(Path(__file__).parent / "status-page.webp")
