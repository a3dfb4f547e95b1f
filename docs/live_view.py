"""Draws docs/live-view.svg: what ``replicator run`` shows during a backfill, with the code that shows it."""

import io

from rich.console import Console

from replicator.cli.render import as_table
from replicator.pipeline.progress import Backfill, Progress, Shards
from replicator.state import Counts

BACKFILL = Progress(
    "backfill",
    lag_seconds=2.0,
    retention_left_hours=24.0,
    backfill=Backfill(3, 8, 1_284_000, 2_050_000, 10_400.0, 73.0),
    shards=Shards(open=4, ended=2),
    rate=350.0,
    parked=1,
    counts=Counts(read=1_302_411, applied=1_301_870, superseded=518, filtered=22, parked=1),
    epoch=1024,
)
# Without the fonts that rich loads from a server: a picture in a README must not need the network.
FORMAT = """<svg viewBox="0 0 {terminal_width} {terminal_height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{
    font-family: Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: {char_height}px;
    line-height: {line_height}px;
}}
{styles}
</style>
<defs>{lines}</defs>
<rect fill="#16181d" width="100%" height="100%" rx="8"/>
<g transform="translate(12, 4)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def console() -> Console:
    """A console on which the live view is drawn."""
    drawn = Console(record=True, width=104, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    drawn.print("[green]$[/green] replicator run orders.yaml", highlight=False)
    drawn.print(as_table(BACKFILL, "orders: DynamoDB orders -> postgres orders"))
    return drawn


if __name__ == "__main__":
    print(console().export_svg(code_format=FORMAT, unique_id="view"), end="")
