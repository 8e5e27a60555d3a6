"""Rows in another order: function and CPU kernel against the reference, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.plugins.conftest import PlantFault
from tests.plugins.cpu.nodes import one_node_model, open_session
from visionllm_edge.plugins.gather_rows.reference import gather_rows
from visionllm_edge.plugins.gather_rows.spec import GATHER_ROWS

# (rows, columns, rows of the result): one task and several.
SHAPES = [(1, 1, 1), (5, 3, 9), (7, 96, 20), (4000, 96, 5003), (3, 70_000, 4), (6, 0, 2), (6, 4, 0)]


def check(library: Path | None, rows: int, columns: int, count: int) -> None:
    rng = np.random.default_rng([rows, columns, count])
    x = rng.standard_normal((rows, columns), dtype=np.float32)
    index = rng.integers(-1, rows, count, dtype=np.int32)
    # Runs of neighbours and runs of zeros, also at the ends.
    length = min(rows, count) // 2
    index[:length] = np.arange(rows - length, rows, dtype=np.int32)
    index[count - count // 4 :] = -3
    session = open_session(one_node_model(GATHER_ROWS), library)
    (y,) = session.run(None, {"x": x, "index": index})
    np.testing.assert_array_equal(y, gather_rows(x, index))


def test_by_hand() -> None:
    x = np.array([[1, 2], [3, 4], [np.nan, 5]], np.float32)
    y = gather_rows(x, np.array([1, -1, 0, 1], np.int32))
    assert y.tolist() == [[3, 4], [0, 0], [1, 2], [3, 4]]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_function_equals_the_reference(shape: tuple[int, int, int]) -> None:
    check(None, *shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_kernel_equals_the_reference(cpu_library: Path, shape: tuple[int, int, int]) -> None:
    check(cpu_library, *shape)


def test_a_row_that_is_not_there_is_zeros_even_where_row_0_is_not_a_number(
    cpu_library: Path,
) -> None:
    x = np.full((2, 3), np.nan, np.float32)
    for library in (None, cpu_library):
        session = open_session(one_node_model(GATHER_ROWS), library)
        (y,) = session.run(None, {"x": x, "index": np.array([-1], np.int32)})
        assert y.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("index", [[0, 4], [2, 3, 4], [4]])
def test_a_row_behind_the_last_is_refused(cpu_library: Path, index: list[int]) -> None:
    session = open_session(one_node_model(GATHER_ROWS), cpu_library)
    x = np.zeros((4, 2), np.float32)
    with pytest.raises(Exception, match=r"GatherRows: input 'index' expected numbers below the 4"):
        session.run(None, {"x": x, "index": np.array(index, np.int32)})


def test_the_comparison_sees_a_wrong_kernel(plant_fault: PlantFault, cpu_library: Path) -> None:
    check(cpu_library, 7, 96, 20)
    library = plant_fault("gather_rows/cpu_op.cpp", "memset(to + i", "memset(to + 0 * i")
    with pytest.raises(AssertionError):
        check(library, 7, 96, 20)
