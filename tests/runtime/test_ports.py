"""Arrays against ports."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from visionllm_edge.runtime.errors import BackendError
from visionllm_edge.runtime.ports import Array, Port, bind_inputs, numpy_dtype, resolve_shape

PORTS = (Port("a", "float32", (1, 3, "H", "W")), Port("b", "int64", ("H",)))
GOOD: dict[str, Array] = {"a": np.zeros((1, 3, 4, 5), np.float32), "b": np.zeros(4, np.int64)}


def test_symbols_get_their_numbers() -> None:
    assert bind_inputs("s", PORTS, GOOD) == {"H": 4, "W": 5}
    assert bind_inputs("s", PORTS, GOOD, {"W": 5, "X": 2}) == {"H": 4, "W": 5, "X": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"a": np.zeros((1, 4, 4, 5), np.float32)},
            "stage 's': input 'a' expected [1, 3, H, W] float32, got [1, 4, 4, 5] float32",
        ),
        ({"a": np.zeros((1, 3, 4, 5))}, "got [1, 3, 4, 5] float64"),
        ({"a": np.zeros((3, 4, 5), np.float32)}, "got [3, 4, 5] float32"),
        ({"b": np.zeros(3, np.int64)}, "with H = 4, got [3] int64"),
        ({"a": np.zeros((1, 3, 0, 5), np.float32)}, "with H >= 1"),
        ({"b": [1, 2, 3, 4]}, "expected a numpy array, got list"),
        ({"c": np.zeros(1)}, "unknown ['c']"),
        ({"b": None}, "missing ['b']"),
    ],
)
def test_messages(changes: dict[str, object], message: str) -> None:
    merged: dict[str, Any] = {**GOOD, **changes}
    inputs = {name: array for name, array in merged.items() if array is not None}
    with pytest.raises(BackendError) as refusal:
        bind_inputs("s", PORTS, inputs)
    assert message in str(refusal.value)


def test_a_settled_symbol_is_not_moved() -> None:
    with pytest.raises(BackendError, match="with W = 8, got"):
        bind_inputs("s", PORTS, GOOD, {"W": 8})


def test_resolve() -> None:
    assert resolve_shape(PORTS[0], {"H": 2, "W": 3}) == (1, 3, 2, 3)
    assert resolve_shape(PORTS[0], {"H": 2}) is None
    assert resolve_shape(Port("x", "float32", ()), {}) == ()


@pytest.mark.parametrize(
    ("name", "dtype", "shape"),
    [("", "float32", (1,)), ("a", "float", (1,)), ("a", "int64", (0,)), ("a", "int64", (True,)),
     ("a", "int64", ("",))],
)  # fmt: skip
def test_ports_that_nothing_matches(name: str, dtype: str, shape: tuple[int | str, ...]) -> None:
    with pytest.raises(ValueError, match="port"):
        Port(name, dtype, shape)


def test_text_form() -> None:
    assert str(PORTS[0]) == "a [1, 3, H, W] float32"


class Elsewhere:
    """An array that is not in the host's memory."""

    def __init__(self, shape: tuple[int, ...], element_type: str) -> None:
        self.shape, self.element_type = shape, element_type

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        raise AssertionError("the check reads no content")


BF16 = (Port("cache", "bfloat16", ("C", 2)),)


def test_bfloat16_travels_as_its_bits() -> None:
    assert numpy_dtype("bfloat16") == np.uint16 and numpy_dtype("bool") == np.bool_
    assert bind_inputs("s", BF16, {"cache": np.zeros((3, 2), np.uint16)}) == {"C": 3}
    with pytest.raises(BackendError, match=r"\[C, 2\] bfloat16, got \[3, 2\] float16"):
        bind_inputs("s", BF16, {"cache": np.zeros((3, 2), np.float16)})


def test_device_arrays_are_checked_like_numpy_ones() -> None:
    assert bind_inputs("s", BF16, {"cache": Elsewhere((5, 2), "bfloat16")}) == {"C": 5}
    for array in (Elsewhere((5, 2), "float16"), Elsewhere((5, 3), "bfloat16")):
        with pytest.raises(BackendError, match=r"expected \[C, 2\] bfloat16, got \[5, "):
            bind_inputs("s", BF16, {"cache": array})
