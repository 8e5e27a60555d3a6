"""What a stage's runs cost on the device: marks on the stream around the copies and the work.

A recording holds the marks like any other work, so that a replay sets them anew. They are read when
the device is through with the run, which the next run of the stage waits for anyway: nobody waits
because of a measurement, and work of several stages stays under way together.
"""

from __future__ import annotations

from collections.abc import Callable

from visionllm_edge.runtime.device.base import Device, Event, Stream

__all__ = ["RunTimer"]

Times = tuple[float, float]


class RunTimer:
    """Four marks of one stage, used by its runs in turn. For one thread at a time.

    Args:
        device: makes the marks.
        wait: waits until the device is through with the last run.
    """

    def __init__(self, device: Device, wait: Callable[[], None]) -> None:
        """Nothing was timed yet."""
        self._wait = wait
        # Before the copies in, before the work, behind the work, behind the copies out.
        self._marks = tuple(device.new_event(timing=True) for _ in range(4))
        self._last: _Run | None = None

    def mark(self, place: int, stream: Stream) -> None:
        """Set mark 0 to 3 behind what the stream has now."""
        self._marks[place].record(stream)

    def launched(self, *, copies_in: bool, copies_out: bool) -> None:
        """All four marks of a run are on the stream, with copies between them or none."""
        self._last = _Run(self._marks, self._wait, copies_in, copies_out)

    def settle(self) -> None:
        """The device is through with the last run: read its marks before they are set again."""
        if self._last is not None:
            self._last()
        self._last = None

    def forget(self) -> None:
        """The last run failed: its marks mean nothing."""
        self._last = None

    @property
    def last(self) -> Callable[[], Times] | None:
        """Of the last run, if it was timed: a function that waits for it and gives its times.

        They are the work and the copies around it, in milliseconds. Good for later, too, when other
        runs have used the marks.
        """
        return self._last


class _Run:
    def __init__(
        self, marks: tuple[Event, ...], wait: Callable[[], None], copies_in: bool, copies_out: bool
    ) -> None:
        self._marks, self._wait = marks, wait
        self._copies_in, self._copies_out = copies_in, copies_out
        self._times: Times | None = None

    def __call__(self) -> Times:
        if self._times is None:
            self._wait()
            begin, work, done, end = self._marks
            # Neighbouring marks are some microseconds apart even if nothing stands between them.
            copies = work.milliseconds_since(begin) if self._copies_in else 0.0
            copies += end.milliseconds_since(done) if self._copies_out else 0.0
            self._times = done.milliseconds_since(work), copies
        return self._times
