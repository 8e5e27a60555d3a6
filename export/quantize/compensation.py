"""Rounding in which later weights make up for the errors of earlier ones.

The columns of a matrix are rounded one after the other. What a rounded column adds to the output's
error is taken away, as far as possible, by changing the columns that are not rounded yet; how much
follows from the products x x^T of the inputs. The scale of a block is chosen when its turn comes,
from its weights as they are by then.

Source: GPTQ, arXiv 2210.17323, with the order of the columns as they stand.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visionllm_edge.export.quantize.matrix import BlockQuantized, code_range, pack, round_blocks

__all__ = ["compensated_blocks"]

DAMPING = 0.05
"""Added to the diagonal of the products, as a share of its mean."""

Float = NDArray[np.float32]


def compensated_blocks(
    weight: Float, bits: int, block_size: int, products: Float
) -> BlockQuantized:
    """Round a matrix, each error made up for by the columns behind it.

    Args:
        weight: [N,K], K a multiple of `block_size`.
        bits: of the codes.
        block_size: G.
        products: [K,K], mean of x x^T over what the matrix reads.
    """
    rows, columns = weight.shape
    assert products.shape == (columns, columns), f"products of {columns} inputs"
    factor = _inverse_factor(products)
    left = torch.from_numpy(np.array(weight, np.float32))
    low, high = code_range(bits)
    codes = np.empty((rows, columns // block_size, block_size), np.int8)
    scales = np.empty((rows, columns // block_size), np.float16)
    for index, start in enumerate(range(0, columns, block_size)):
        stop = start + block_size
        block = left[:, start:stop]
        within = products[None, start:stop, start:stop]
        _, scale = round_blocks(block.numpy()[:, None, :], bits, within)
        scales[:, index] = scale[:, 0]
        step = torch.from_numpy(scale[:, 0].astype(np.float32))
        errors = torch.empty_like(block)
        for column in range(block_size):
            here = block[:, column]
            code = torch.clamp(torch.round(here / step), low, high)
            codes[:, index, column] = code.to(torch.int8).numpy()
            row = factor[start + column, start + column : stop]
            errors[:, column] = (here - code * step) / row[0]
            block[:, column + 1 :] -= errors[:, column, None] * row[1:]
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return BlockQuantized(pack(codes, bits), scales, bits, block_size)


def _inverse_factor(products: Float) -> Tensor:
    """Upper triangular U with U^T U the inverse of the damped products, float32 [K,K]."""
    damped = torch.from_numpy(products).double()
    diagonal = damped.diagonal()
    diagonal += DAMPING * diagonal.mean() + 1e-12
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True).float()
    return factor
