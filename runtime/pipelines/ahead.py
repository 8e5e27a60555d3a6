"""Work that a request begins early, on a thread of its own, and collects where it is needed.

A decoder's backbone reads the picture and nothing that the language model says, so it can run while
the language model reads and writes. The block that owns such work always ends it: whatever happens
inside, no thread outlives the request.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType

__all__ = ["Ahead"]

_log = logging.getLogger(__name__)


class Ahead:
    """One piece of work beside the rest of a request.

        with Ahead(work) as ahead:
            ahead.start()
            ...  # what does not need it
            ahead.join()
            ...  # what does

    A request that fails, is given up, or turns out not to need the work leaves the block without
    `join`: the block waits until the work is done, and what it raised is dropped, because nobody
    asked for it. The work leaves its result where the request finds it.

    Args:
        work: is called once, on the new thread; None makes a block without any.
    """

    def __init__(self, work: Callable[[], object] | None) -> None:
        """Do nothing yet."""
        self._work = work
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self) -> None:
        """Begin, unless it has begun. Where no thread is to be had, the request does the work."""
        if self._work is None or self._thread is not None:
            return
        thread = threading.Thread(target=self._run, name="visionllm-edge ahead")
        try:
            thread.start()
        except RuntimeError as error:
            _log.warning("no thread to work ahead on (%s): one after the other", error)
            self._work = None
            return
        self._thread = thread

    def join(self) -> None:
        """Wait for the work, if it has begun.

        Raises:
            Exception: what the work raised.
        """
        if self._thread is not None:
            self._thread.join()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> Ahead:
        """The block begins."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for the work; an error of it that nobody collected is dropped."""
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            _log.debug("work ahead that nobody needed failed: %r", self._error)
            self._error = None

    def _run(self) -> None:
        assert self._work is not None
        try:
            self._work()
        except BaseException as error:
            self._error = error
