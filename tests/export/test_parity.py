from __future__ import annotations

import numpy as np
import pytest

from visionllm_edge.export.parity import (
    CONTROL_FACTOR,
    FLOORS,
    compare_outputs,
    compare_with_limits,
    require_parity,
)
from visionllm_edge.runtime.errors import ParityError
from visionllm_edge.runtime.targets import PRECISIONS, QUANTIZED

TRUTH = {"good": np.array([1.0, -4.0]), "other": np.array([[2.0, 3.0]])}
CONTROL = {"good": np.array([1.0, -4.001]), "other": np.array([[2.0, 3.0]])}
FLOOR = FLOORS["fp32"]


def test_limit_is_twice_the_control_plus_a_floor() -> None:
    good, other = compare_outputs(CONTROL, TRUTH, CONTROL, precision="fp32")
    assert good.control == pytest.approx(0.001)
    assert good.limit == pytest.approx(CONTROL_FACTOR * 0.001 + FLOOR * 4.0)
    assert other.limit == pytest.approx(FLOOR * 3.0)
    assert good.ok
    assert other.ok


@pytest.mark.parametrize(("factor", "right"), [(1.9, True), (2.1, False)])
def test_the_factor_decides(factor: float, right: bool) -> None:
    ours = {**TRUTH, "good": TRUTH["good"] - [0.0, factor * 0.001]}
    report = compare_outputs(ours, TRUTH, CONTROL, precision="fp32")
    assert report[0].ok is right


def test_an_exact_control_still_leaves_the_floor() -> None:
    ours = {**TRUTH, "other": TRUTH["other"] + 0.5 * FLOOR * 3.0}
    assert compare_outputs(ours, TRUTH, CONTROL, precision="fp32")[1].ok
    ours = {**TRUTH, "other": TRUTH["other"] + 1.5 * FLOOR * 3.0}
    assert not compare_outputs(ours, TRUTH, CONTROL, precision="fp32")[1].ok


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (np.array([1.0, 4.0]), "largest error 8"),
        (np.array([1.0, np.nan]), "1 values are not finite"),
        (np.array([1.0, np.inf]), "1 values are not finite"),
        (np.array([[1.0, -4.0]]), r"shape \[1, 2\], expected \[2\]"),
    ],
    ids=["sign", "nan", "inf", "shape"],
)
def test_a_wrong_answer_is_refused_by_name(wrong: np.ndarray, words: str) -> None:
    report = compare_outputs({**TRUTH, "good": wrong}, TRUTH, CONTROL, precision="fp32")
    with pytest.raises(ParityError, match=f"'stage': output 'good' is wrong.*{words}"):
        require_parity("stage", report)


def test_the_first_bad_tensor_is_named() -> None:
    ours = {name: array + 1.0 for name, array in TRUTH.items()}
    report = compare_outputs(ours, TRUTH, CONTROL, precision="fp32")
    with pytest.raises(ParityError, match="output 'good'"):
        require_parity("stage", report)


def test_every_precision_of_a_target_has_a_floor_and_coarser_ones_a_larger() -> None:
    assert tuple(FLOORS) == (*PRECISIONS, *QUANTIZED)
    assert FLOORS["fp32"] < FLOORS["fp16"] < FLOORS["bf16"]
    # One unit in the last place of 11 and 8 significant bits.
    assert FLOORS["fp16"] == pytest.approx(2.0**-10, rel=0.03)
    assert FLOORS["bf16"] == pytest.approx(2.0**-7, rel=0.03)


def test_recorded_limits() -> None:
    ours = {"good": TRUTH["good"] + 0.01, "other": TRUTH["other"]}
    report = compare_with_limits(ours, TRUTH, {"good": 0.02, "other": 0.0})
    require_parity("stage", report)
    with pytest.raises(ParityError, match=r"allowed 0\.005"):
        require_parity("stage", compare_with_limits(ours, TRUTH, {"good": 0.005, "other": 0.0}))
