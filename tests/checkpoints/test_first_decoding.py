"""Several pipelines in one process decode everything for the first time at once, on a thread each."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import threading, time
from msgspec import _utils
from replicator.errors import ReplicatorError
from replicator.aws.errors import decoded
from replicator.key import KeyAttribute, KeySchema
from replicator.source.decoding import RecordsDecoder
from replicator.source.stream import _DescribeStream
from replicator.state import VALUES, decode

annotations = _utils._get_class_annotations
_utils._get_class_annotations = lambda of: (time.sleep(0.002), annotations(of))[1]  # lets the other threads in
together = threading.Barrier(8)
keys = KeySchema((KeyAttribute("pk", "S"), KeyAttribute("sk", "N")))
first = [lambda kind=kind: decode(kind, "", "{}") for kind in VALUES]
first += [lambda: decoded(b"{}", _DescribeStream, "DescribeStream"), lambda: RecordsDecoder(keys)(b"{}")]

def work(number):
    together.wait()
    time.sleep(number / 2000)
    for one in first:
        try:
            one()
        except ReplicatorError:
            pass

threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_that_decode_a_type_for_the_first_time_at_once_do_not_crash_the_process() -> None:
    """msgspec builds what it knows of a type at its first use, and reads it half-built on another thread."""
    assert subprocess.run([sys.executable, "-c", PROGRAM], check=False).returncode == 0


UNREAD = """
from msgspec import _utils
from replicator.errors import ReplicatorError
from replicator.state import VALUES, decode

def read(of):
    raise SystemExit(f"the fields of {of} are read as late as this")

_utils._get_class_annotations = read
for kind in VALUES:
    try:
        decode(kind, "", "{}")
    except ReplicatorError:
        pass
"""


def test_what_the_checkpoints_hold_is_known_before_there_are_threads() -> None:
    found = subprocess.run([sys.executable, "-c", UNREAD], check=False, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
