"""Work that may take longer than a run can be without a heartbeat: a merge of a large table, a slow receiver."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any

from replicator.errors import Unfinished

PATIENCE = 5.0  # seconds to wait for it at once


class Background:
    """Does one piece of work at a time, on a thread of its own. The client lets other threads run meanwhile.

    ``patience``: seconds to wait at once; None: without limit. ``name``: of the thread.
    """

    def __init__(self, patience: float | None = PATIENCE, name: str = "delta") -> None:
        self.patience = patience
        self._name = name
        self._of: object = None
        self._thread: threading.Thread | None = None
        self._result: Any = None
        self._error: BaseException | None = None

    def is_for(self, of: object) -> bool:
        """Whether the work of this object is in progress, or its result was not asked for yet."""
        return self._thread is not None and self._of is of

    def result(self, of: object, work: Callable[[], Any], what: str) -> Any:
        """What ``work`` returns or raises. Unfinished, with ``what`` goes on, until the call that finds it done.

        The work is begun unless that of the same object is in progress; that of another one is waited for.
        """
        if not self.is_for(of):
            self.settle()
            self._begin(of, work)
        assert self._thread is not None
        self._thread.join(self.patience)
        if self._thread.is_alive():
            raise Unfinished(f"{what} goes on")
        self._thread = self._of = None
        if self._error is not None:
            raise self._error
        return self._result

    def settle(self) -> BaseException | None:
        """Wait until nothing is in progress. What that returned is dropped: it is done again, or obsolete.

        Returns what it raised.
        """
        if self._thread is None:
            return None
        self._thread.join()
        self._thread = self._of = None
        return self._error

    def _begin(self, of: object, work: Callable[[], Any]) -> None:
        def run() -> None:
            try:
                self._result = work()
            except BaseException as e:  # raised where the result is asked for
                self._error = e

        self._of, self._result, self._error = of, None, None
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(run,), name=self._name, daemon=True)
        self._thread.start()
