"""Fixtures of the operators' tests: the CPU library with a planted fault."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from visionllm_edge.plugins.cpu.build import build_library, find_compiler

PlantFault = Callable[[str, str, str], Path]


@pytest.fixture
def plant_fault(repository: Path, tmp_path: Path) -> PlantFault:
    """A function that builds the library with one place of one source file changed."""
    if find_compiler() is None:
        pytest.skip("no C++ compiler: the CPU kernels cannot be built")

    def plant(file: str, right: str, wrong: str) -> Path:
        sources = tmp_path / "plugins"
        shutil.copytree(
            repository / "plugins", sources, ignore=shutil.ignore_patterns("*.py", "*.so", "*.cuh")
        )
        text = (sources / file).read_text(encoding="utf-8")
        assert text.count(right) == 1, f"{right!r} stands {text.count(right)} times in {file}"
        (sources / file).write_text(text.replace(right, wrong), encoding="utf-8")
        # Optimising would take longer than the test runs.
        return build_library(tmp_path / "faulty.so", sources=sources, extra_flags=["-O0"])

    return plant
