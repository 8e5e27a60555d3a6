"""Recorded work by what it depends on: the second equal call is recorded, the third is replayed."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable

from visionllm_edge.runtime.device.base import Device, Graph, Stream
from visionllm_edge.runtime.errors import BackendError

__all__ = ["RecordedCalls"]

_log = logging.getLogger(__name__)
# Prefill lengths come in many sizes and never come back; decode steps are one or two shapes.
_CALLS_KEPT = 32


class RecordedCalls:
    """Runs calls on a stream, and turns those that come again into graphs.

    A key holds everything that a recording freezes: shapes, addresses, values read by the host.
    """

    def __init__(self, device: Device, stream: Stream, *, about: str) -> None:
        """Start with nothing recorded.

        Args:
            device: records.
            stream: gets all work.
            about: names the owner in the log.
        """
        self._device = device
        self._stream = stream
        self._about = about
        self._known: OrderedDict[Hashable, Graph | None] = OrderedDict()
        self._enabled = True

    @property
    def recorded(self) -> int:
        """How many calls are held as graphs."""
        return sum(graph is not None for graph in self._known.values())

    def run(
        self,
        key: Hashable,
        prepare: Callable[[], bool],
        enqueue: Callable[[], None],
        capturable: Callable[[], bool],
    ) -> None:
        """Put a call on the stream.

        Args:
            key: equal keys mean that a recording of one is right for the other.
            prepare: called before ``enqueue`` unless a recording is replayed; returns whether the
                callee has run in this state before, which a recording needs.
            enqueue: puts the work on the stream.
            capturable: asked once before a recording is tried.

        Raises:
            BackendError: the work failed. A failed recording alone only ends recording.
        """
        graph = self._known.get(key)
        if graph is not None:
            self._known.move_to_end(key)
            graph.launch(self._stream)
            return
        warm = prepare()
        if self._enabled and warm and key in self._known and capturable():
            graph = self._record(enqueue)
            if graph is not None:
                self._known[key] = graph
                self._known.move_to_end(key)
                graph.launch(self._stream)
                return
        enqueue()
        self._known.setdefault(key, None)
        self._known.move_to_end(key)
        while len(self._known) > _CALLS_KEPT:
            self._known.popitem(last=False)

    def _record(self, enqueue: Callable[[], None]) -> Graph | None:
        try:
            self._device.begin_capture(self._stream)
            try:
                enqueue()
            except BaseException:
                self._abandon()
                raise
            return self._device.end_capture(self._stream)
        except BackendError as e:
            self._enabled = False
            _log.warning("%s runs without CUDA graphs: it cannot be recorded (%s)", self._about, e)
            return None

    def _abandon(self) -> None:
        """Leave capture mode; what was recorded is of no use, and neither is why it is broken."""
        try:
            self._device.end_capture(self._stream)
        except BackendError as e:
            _log.debug("%s: an abandoned recording ended with: %s", self._about, e)
