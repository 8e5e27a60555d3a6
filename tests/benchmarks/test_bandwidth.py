"""The bandwidth probe, on a buffer that is small enough for a test."""

from __future__ import annotations

import pytest

from visionllm_edge.benchmarks.bandwidth import measure_read_bandwidth


@pytest.mark.parametrize("threads", [1, 2])
def test_a_buffer_is_read(threads: int) -> None:
    got = measure_read_bandwidth(threads, buffer_bytes=16 << 20, passes=3)
    assert got.threads == threads
    # No memory is slower than 0.1 GB/s, no cache faster than 10 TB/s.
    assert 1e8 < got.bytes_per_s < 1e13
