"""The gate in numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["gated_silu"]


def gated_silu(gate_up: NDArray[np.floating]) -> NDArray[np.floating]:
    """Gate every row of [B,S,2F]; sums and exponentials in float64.

    Returns:
        [B,S,F] in the type of the input.
    """
    gate, up = np.split(gate_up.astype(np.float64), 2, axis=-1)
    with np.errstate(over="ignore"):  # exp of a large number: the quotient is then 0, as it should
        result = gate / (1.0 + np.exp(-gate)) * up
    return result.astype(gate_up.dtype)
