"""How many registers a kernel may take, and the check that none of them spills.

The ceilings are the largest counts seen over all of `SMS`, with NVRTC 13.5 and nvcc 13.0; the
launch bounds in the sources hold the compiler to about the same. More registers mean fewer blocks
on a multiprocessor and fewer loads in flight: raise a ceiling only with a measurement.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from visionllm_edge.plugins.cuda.compile import KernelResources

__all__ = ["REGISTER_CEILINGS", "over_budget"]

REGISTER_CEILINGS: Mapping[str, int] = MappingProxyType(
    {
        "msda_vec": 80,
        "msda_any": 72,
        "msda_naive": 80,
        "pool_fold_vec": 80,
        "pool_fold_any": 80,
        "pool_sampled": 40,
        "pool_naive": 52,
    }
)
"""Kernel without its type code -> registers per thread, for every type."""


def over_budget(resources: Mapping[str, KernelResources]) -> list[str]:
    """What is wrong with compiled kernels: spills, too many registers, a kernel without ceiling."""
    complaints = []
    for kernel, used in sorted(resources.items()):
        operator, _, form = kernel.split("_", 2)
        ceiling = REGISTER_CEILINGS.get(f"{operator}_{form}")
        if used.spill_stores or used.spill_loads:
            complaints.append(
                f"{kernel}: spills {used.spill_stores} bytes out, {used.spill_loads} bytes in"
            )
        if ceiling is None:
            complaints.append(f"{kernel}: no register ceiling recorded")
        elif used.registers > ceiling:
            complaints.append(f"{kernel}: {used.registers} registers, expected at most {ceiling}")
    return complaints
