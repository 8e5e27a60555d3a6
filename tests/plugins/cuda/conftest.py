"""Kernels compiled once per session."""

from __future__ import annotations

import pytest

from tests.plugins.cuda.host_kernels import HostKernels


@pytest.fixture(scope="session")
def msda_kernels(tmp_path_factory: pytest.TempPathFactory) -> HostKernels:
    """Deformable attention's kernels, compiled for this CPU."""
    return HostKernels("ms_deform_attn", tmp_path_factory.mktemp("host") / "msda")


@pytest.fixture(scope="session")
def pool_kernels(tmp_path_factory: pytest.TempPathFactory) -> HostKernels:
    """Prompt pooling's kernels, compiled for this CPU."""
    return HostKernels("grid_sample_prompt_pool", tmp_path_factory.mktemp("host") / "pool")
