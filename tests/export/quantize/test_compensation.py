"""Later columns make up for the errors of earlier ones."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from visionllm_edge.export.quantize.compensation import compensated_blocks
from visionllm_edge.export.quantize.matrix import BlockQuantized, quantize_blocks

ROWS, COLUMNS, BLOCK = 48, 128, 32


def inputs(seed: int) -> NDArray[np.float32]:
    """Rows [T,K] that a linear reads; channels depend on each other, as activations do."""
    mixing = np.random.default_rng(99).normal(size=(COLUMNS, COLUMNS))
    rows = np.random.default_rng(seed).normal(size=(2000, COLUMNS))
    return np.asarray(rows @ mixing, np.float32)


def products_of(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean of x x^T."""
    return np.asarray(rows.T @ rows / len(rows), np.float32)


def output_error(
    weight: NDArray[np.float32], found: BlockQuantized, rows: NDArray[np.float32]
) -> float:
    """Mean squared error of the outputs."""
    return float(np.square(rows @ (found.dequantize() - weight).T).mean())


@pytest.fixture
def weight() -> NDArray[np.float32]:
    return np.random.default_rng(7).normal(size=(ROWS, COLUMNS)).astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
def test_outputs_are_nearer_also_on_rows_that_were_not_seen(
    weight: NDArray[np.float32], bits: int
) -> None:
    seen, unseen = inputs(0), inputs(1)
    found = compensated_blocks(weight, bits, BLOCK, products_of(seen))
    plain = quantize_blocks(weight, bits, BLOCK)
    assert output_error(weight, found, unseen) < 0.65 * output_error(weight, plain, unseen)
    assert (found.bits, found.block_size, found.columns) == (bits, BLOCK, COLUMNS)


def test_inputs_that_are_independent_leave_nothing_to_make_up_for(
    weight: NDArray[np.float32],
) -> None:
    products = np.eye(COLUMNS, dtype=np.float32)
    found = compensated_blocks(weight, 4, BLOCK, products)
    blocks = np.repeat(np.eye(BLOCK, dtype=np.float32)[None], COLUMNS // BLOCK, axis=0)
    plain = quantize_blocks(weight, 4, BLOCK, blocks)
    np.testing.assert_array_equal(found.scales, plain.scales)
    np.testing.assert_array_equal(found.weight, plain.weight)


def test_inputs_that_never_come_do_no_harm(weight: NDArray[np.float32]) -> None:
    rows = inputs(1)
    rows[:, 40] = 0.0
    found = compensated_blocks(weight, 4, BLOCK, products_of(rows))
    assert np.isfinite(found.dequantize()).all()
    assert output_error(weight, found, rows) < output_error(
        weight, quantize_blocks(weight, 4, BLOCK), rows
    )
