"""What the machine does of its own accord: clocks, temperatures, power mode, throttling.

Read from Linux's sysfs, and for NVIDIA GPUs from NVML where its bindings (``pynvml``) are
installed. What a machine does not say is left out; a virtual machine often says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from visionllm_edge.benchmarks.bench.measurement import DeviceState
from visionllm_edge.benchmarks.bench.sysfs import read_number, read_text
from visionllm_edge.runtime.errors import MeasurementError

__all__ = ["read_state", "require_same_state"]

# A governor may move a clock a little at any time; more than this is another power mode.
_CLOCK_TOLERANCE = 0.1
_CPUFREQ = "sys/devices/system/cpu/cpu{core}/cpufreq"
_MAX_CORES = 256


def read_state(root: Path = Path("/")) -> DeviceState:
    """The state now.

    Args:
        root: of the file system; tests give a made-up one.
    """
    gpu = _nvml_state() if root == Path("/") else None
    return DeviceState(
        clocks_mhz=_clocks(root) | (gpu.clocks_mhz if gpu else {}),  # type: ignore[operator]
        temperatures_c=_temperatures(root) | (gpu.temperatures_c if gpu else {}),  # type: ignore[operator]
        power_mode=_power_mode(root),
        throttled=gpu.throttled if gpu and gpu.throttled else _throttled(root),
    )


def require_same_state(before: DeviceState, after: DeviceState) -> None:
    """Refuse a measurement during which the machine became another one.

    Limits of the clocks (what a power mode sets) count, not what a core runs at this instant.

    Raises:
        MeasurementError: power mode or clock limits changed, or the machine throttled.
    """
    if before.power_mode != after.power_mode:
        raise MeasurementError(
            f"measurement: expected one power mode, got {before.power_mode!r} before and "
            f"{after.power_mode!r} after. Set it once, wait, and measure again."
        )
    for name, clock in before.clocks_mhz.items():
        later = after.clocks_mhz.get(name)
        if later is None or abs(later - clock) > _CLOCK_TOLERANCE * clock:
            raise MeasurementError(
                f"measurement: expected {name} at {clock:.0f} MHz to the end, got "
                f"{'nothing' if later is None else f'{later:.0f} MHz'}. Lock the clocks "
                "(jetson_clocks, nvidia-smi -lgc, cpupower) and measure again."
            )
    if after.throttled != before.throttled:
        raise MeasurementError(
            f"measurement: the machine throttled meanwhile ({after.throttled}). "
            "Cool it or lower the clocks, and measure again."
        )


def _clocks(root: Path) -> dict[str, float]:
    """Upper limits of the cores' clocks, which a power mode sets."""
    out = {}
    for core in _cores(root):
        limit = read_number(root / _CPUFREQ.format(core=core) / "scaling_max_freq")
        if limit is not None:
            out[f"cpu{core} limit"] = limit / 1000
    for device in sorted(root.glob("sys/class/devfreq/*")):
        limit = read_number(device / "max_freq")
        if limit is not None and "gpu" in device.name:
            out[f"{device.name} limit"] = limit / 1e6
    return out


def _temperatures(root: Path) -> dict[str, float]:
    out = {}
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        value = read_number(zone / "temp")
        if value is not None:
            out[read_text(zone / "type") or zone.name] = value / 1000
    for monitor in sorted(root.glob("sys/class/hwmon/hwmon*")):
        name = read_text(monitor / "name") or monitor.name
        for sensor in sorted(monitor.glob("temp*_input")):
            value = read_number(sensor)
            if value is not None:
                label = read_text(monitor / sensor.name.replace("input", "label"))
                out[f"{name} {label or sensor.name.partition('_')[0]}"] = value / 1000
    return out


def _power_mode(root: Path) -> str | None:
    jetson = read_text(root / "var/lib/nvpmodel/status")
    if jetson:
        found = re.search(r"pmode:(\d+)", jetson)
        return f"nvpmodel {int(found.group(1)) if found else jetson}"
    governors = {
        governor
        for core in _cores(root)
        if (governor := read_text(root / _CPUFREQ.format(core=core) / "scaling_governor"))
    }
    return f"governor {', '.join(sorted(governors))}" if governors else None


def _throttled(root: Path) -> str | None:
    """How often cores have slowed down since the machine started, if any has."""
    counts = [
        int(count)
        for core in _cores(root)
        if (
            count := read_number(
                root / f"sys/devices/system/cpu/cpu{core}/thermal_throttle/core_throttle_count"
            )
        )
    ]
    return f"{sum(counts)} thermal throttle events of the cores" if counts else None


def _nvml_state() -> DeviceState | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    clocks, temperatures, reasons = {}, {}, []
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            name = f"gpu{index}"
            clocks[f"{name} sm limit"] = float(
                pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)
            )
            temperatures[name] = float(
                pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
            )
            active = int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
            idle = int(pynvml.nvmlClocksThrottleReasonGpuIdle)
            if active & ~idle:
                reasons.append(f"{name} reasons {active & ~idle:#x}")
    except pynvml.NVMLError:
        pass  # a board that does not answer one question answers the others
    finally:
        pynvml.nvmlShutdown()
    return DeviceState(clocks, temperatures, None, ", ".join(reasons) or None)


def _cores(root: Path) -> Iterator[int]:
    for core in range(_MAX_CORES):
        if not (root / f"sys/devices/system/cpu/cpu{core}").is_dir():
            return
        yield core
