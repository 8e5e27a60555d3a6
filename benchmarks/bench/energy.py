"""Energy from the rails that the machine names; nothing is estimated where there is none.

Sources in the order they are tried: Jetson's INA3221 and INA238 monitors (power, sampled and
summed up), a GPU's own energy counter through NVML, the processor's counter (powercap, "RAPL").
Rails inside a device are not the plug on the wall.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Protocol

from visionllm_edge.benchmarks.bench.sysfs import read_number, read_text

__all__ = ["EnergyMeter", "find_meter"]

_PERIOD_S = 0.05
_MONITORS = ("ina3221", "ina238")
_WHOLE_BOARD = ("VDD_IN", "VIN_SYS_5V0", "POM_5V_IN")


class EnergyMeter(Protocol):
    """A counter of joules. Use as a context manager."""

    name: str
    """The rail that it reads."""

    def joules(self) -> float:
        """Since some moment; only differences mean anything."""
        ...

    def __enter__(self) -> EnergyMeter:
        """Begin."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End."""
        ...


def find_meter(root: Path = Path("/")) -> EnergyMeter | str:
    """The best source of this machine, or why there is none.

    Args:
        root: of the file system; tests give a made-up one.
    """
    for monitor in sorted(root.glob("sys/class/hwmon/hwmon*")):
        if read_text(monitor / "name") in _MONITORS:
            rail = _whole_board(monitor)
            if rail is not None:
                return rail
    if root == Path("/"):
        gpu = _nvml_meter()
        if gpu is not None:
            return gpu
    for zone in sorted(root.glob("sys/class/powercap/intel-rapl:*")):
        if zone.name.count(":") == 1 and read_number(zone / "energy_uj") is not None:
            return _Counter(zone)
    return "not available: no INA monitor, no NVML, no readable powercap counter"


class _Base:
    def __enter__(self) -> EnergyMeter:
        return self  # type: ignore[return-value]  # the subclasses have joules and name

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass


class _Counter(_Base):
    """A powercap zone, whose counter begins again at its range."""

    def __init__(self, zone: Path) -> None:
        self._path = zone / "energy_uj"
        self._range = read_number(zone / "max_energy_range_uj") or 0.0
        self.name = f"RAPL {read_text(zone / 'name') or zone.name}"
        self._last = read_number(self._path) or 0.0
        self._sum = 0.0

    def joules(self) -> float:
        now = read_number(self._path) or self._last
        step = now - self._last
        self._sum += step if step >= 0 else step + self._range
        self._last = now
        return self._sum / 1e6


class _Sampled(_Base):
    """A rail's voltage times its current, summed up by a thread."""

    def __init__(self, monitor: Path, channel: int, label: str) -> None:
        self._voltage = monitor / f"in{channel}_input"
        self._current = monitor / f"curr{channel}_input"
        self.name = f"{read_text(monitor / 'name')} {label}"
        self._sum, self._at = 0.0, time.monotonic()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="energy", daemon=True)

    def __enter__(self) -> EnergyMeter:
        self._at = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def joules(self) -> float:
        self._add()
        with self._lock:
            return self._sum

    def _run(self) -> None:
        while not self._stop.wait(_PERIOD_S):
            self._add()

    def _add(self) -> None:
        volts, amperes = (
            (read_number(path) or 0.0) / 1000 for path in (self._voltage, self._current)
        )
        with self._lock:
            now = time.monotonic()
            self._sum += volts * amperes * (now - self._at)
            self._at = now


def _whole_board(monitor: Path) -> _Sampled | None:
    """The rail that feeds the board; the first one where none has a known name."""
    labels = {
        int(path.name[2 : -len("_label")]): read_text(path) or path.name
        for path in sorted(monitor.glob("in*_label"))
    }
    readable = {c: name for c, name in labels.items() if (monitor / f"curr{c}_input").exists()}
    named = [channel for channel, name in readable.items() if name in _WHOLE_BOARD]
    for channel in (*named, *readable):
        return _Sampled(monitor, channel, readable[channel])
    return None


def _nvml_meter() -> EnergyMeter | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # no bindings, no driver, or a board without the counter: no meter
        return None
    return _Nvml(pynvml, handle)


class _Nvml(_Base):
    def __init__(self, library: object, handle: object) -> None:
        self._library, self._handle = library, handle
        self.name = "NVML gpu0"

    def joules(self) -> float:
        read = self._library.nvmlDeviceGetTotalEnergyConsumption  # type: ignore[attr-defined]
        return float(read(self._handle)) / 1000
