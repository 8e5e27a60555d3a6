"""The benchmark of linear layers, on a chain of one small layer."""

from __future__ import annotations

import pytest

from visionllm_edge.benchmarks.linears import Linears, compare, make_linears
from visionllm_edge.plugins.cpu.library import find_library


def test_the_shapes_are_those_of_the_model() -> None:
    linears = make_linears(1, 32, head=False)
    # 4.5 bits a weight: 4 and a 16-bit scale for every 32.
    assert linears.products == 2048 * (2560 + 2048 + 2 * 5632) + 5632 * 2048
    assert linears.weight_bytes == linears.products * 9 // 16


def test_both_forms_run() -> None:
    library = find_library()
    if library is None:
        pytest.skip("no CPU kernels are built here")
    linears = Linears(32)
    linears.add(2048, 96)
    linears.add(64, 32, bits=8)
    times = compare(linears, library, rows=2, rounds=1, threads=1)
    assert set(times) == {"kernel", "MatMulNBits"}
    assert all(value > 0 for form in times.values() for value in form.values())
