"""What the linears of one layer read on the calibration sequences, in bounded memory.

========  ===================  ===================================================================
kept      shape                from
========  ===================  ===================================================================
size      [K]                  all rows: mean magnitude of every input channel
products  [K, K]               all rows: x x^T, the weight of an error and of what makes up for it
rows      [R, K]               a sample spread evenly over all rows, for the scale search
========  ===================  ===================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visionllm_edge.export.quantize.layer import LINEARS
from visionllm_edge.export.quantize.policy import block_for

__all__ = ["SAMPLED_ROWS", "Activations", "LinearInput"]

SAMPLED_ROWS = 256

Float = NDArray[np.float32]


@dataclass(frozen=True)
class LinearInput:
    """What one linear reads.

    Attributes:
        size: mean magnitude per channel [K].
        products: mean of x x^T over the rows [K,K]; None where the channels cannot be cut into
            blocks.
        rows: sampled rows [R,K].
    """

    size: Float
    products: Float | None
    rows: Float

    def scaled(self, scales: Float) -> LinearInput:
        """The same with every channel divided by its scale [K]."""
        products = self.products
        if products is not None:
            products = products / (scales[:, None] * scales[None, :])
        return LinearInput(self.size / scales, products, self.rows / scales)


class Activations:
    """Collects what a layer's linears read; `watch` is given to `LayerRunner.run`.

    Args:
        block_size: of the quantised weights.
        total_rows: of all sequences together.
    """

    def __init__(self, block_size: int, total_rows: int) -> None:
        """Nothing is seen yet."""
        self._block_size = block_size
        self._every = max(1, total_rows // SAMPLED_ROWS)
        self._seen = dict.fromkeys(LINEARS, 0)
        self._size: dict[str, Tensor] = {}
        self._products: dict[str, Tensor | None] = {}
        self._rows: dict[str, list[Tensor]] = {name: [] for name in LINEARS}

    def watch(self, name: str, rows: Tensor) -> None:
        """Take the rows [T,K] that a linear reads."""
        columns = rows.shape[1]
        size = rows.abs().sum(dim=0)
        products = None if block_for(columns, self._block_size) is None else rows.T @ rows
        if name not in self._size:
            self._size[name], self._products[name] = size, products
        else:
            self._size[name] += size
            total = self._products[name]
            if total is not None and products is not None:
                total += products
        first = -self._seen[name] % self._every
        self._rows[name].append(rows[first :: self._every].clone())
        self._seen[name] += len(rows)

    def of(self, name: str) -> LinearInput:
        """What one linear read."""
        products, seen = self._products[name], self._seen[name]
        return LinearInput(
            (self._size[name] / seen).numpy(),
            None if products is None else (products / seen).numpy(),
            torch.cat(self._rows[name]).numpy(),
        )
