"""``python -m replicator`` is ``replicator``."""

from replicator.cli import main

main(prog_name="replicator")
