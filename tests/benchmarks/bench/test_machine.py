"""What a machine says of itself, read from a made-up one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from visionllm_edge.benchmarks.bench.device_state import read_state, require_same_state
from visionllm_edge.benchmarks.bench.energy import find_meter
from visionllm_edge.benchmarks.bench.measurement import DeviceState
from visionllm_edge.runtime.errors import MeasurementError

CPU = "sys/devices/system/cpu/cpu0"


def put(root: Path, **files: str) -> None:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


@pytest.fixture
def jetson(tmp_path: Path) -> Path:
    for name, text in {
        f"{CPU}/cpufreq/scaling_max_freq": "2201600",
        f"{CPU}/cpufreq/scaling_governor": "schedutil",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
        "sys/class/thermal/thermal_zone0/temp": "48500",
        "var/lib/nvpmodel/status": "pmode:0003 fmode:fanNull",
        "sys/class/hwmon/hwmon1/name": "ina3221",
        "sys/class/hwmon/hwmon1/in1_label": "VDD_CPU_GPU_CV",
        "sys/class/hwmon/hwmon1/in2_label": "VDD_IN",
        "sys/class/hwmon/hwmon1/in1_input": "5000",
        "sys/class/hwmon/hwmon1/in2_input": "19000",
        "sys/class/hwmon/hwmon1/curr1_input": "1000",
        "sys/class/hwmon/hwmon1/curr2_input": "500",
    }.items():
        put(tmp_path, **{name: text})
    return tmp_path


def test_what_a_jetson_says(jetson: Path) -> None:
    state = read_state(jetson)
    assert state.power_mode == "nvpmodel 3"
    assert state.clocks_mhz == {"cpu0 limit": 2201.6}
    assert state.temperatures_c["cpu-thermal"] == 48.5
    assert state.throttled is None


def test_a_machine_that_says_nothing(tmp_path: Path) -> None:
    assert read_state(tmp_path) == DeviceState()
    require_same_state(DeviceState(), DeviceState())
    assert isinstance(meter := find_meter(tmp_path), str) and meter.startswith("not available")


BEFORE = DeviceState({"cpu0 limit": 2000.0}, {}, "nvpmodel 0")


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (dataclasses.replace(BEFORE, power_mode="nvpmodel 3"), "one power mode"),
        (dataclasses.replace(BEFORE, clocks_mhz={"cpu0 limit": 1000.0}), "at 2000 MHz to the end"),
        (dataclasses.replace(BEFORE, clocks_mhz={}), "got nothing"),
        (dataclasses.replace(BEFORE, throttled="3 thermal throttle events"), "throttled meanwhile"),
    ],
)
def test_a_machine_that_changed_is_refused(after: DeviceState, said: str) -> None:
    require_same_state(BEFORE, BEFORE)
    with pytest.raises(MeasurementError, match=said):
        require_same_state(BEFORE, after)


def test_the_boards_own_rail_is_taken(jetson: Path) -> None:
    meter = find_meter(jetson)
    assert not isinstance(meter, str)
    assert meter.name == "ina3221 VDD_IN"
    with meter:
        begin = meter.joules()
        while (used := meter.joules() - begin) <= 0:
            pass
    # 19 V times 0.5 A: 9.5 W over however long it was; never negative, never without time.
    assert 0 < used < 9.5


def test_a_counter_that_begins_again(tmp_path: Path) -> None:
    zone = "sys/class/powercap/intel-rapl:0"
    for name, text in (
        ("energy_uj", "900"),
        ("max_energy_range_uj", "1000"),
        ("name", "package-0"),
    ):
        put(tmp_path, **{f"{zone}/{name}": text})
    meter = find_meter(tmp_path)
    assert not isinstance(meter, str) and meter.name == "RAPL package-0"
    begin = meter.joules()
    put(tmp_path, **{f"{zone}/energy_uj": "100"})
    assert meter.joules() - begin == pytest.approx(200e-6)
