"""Fixtures of the operators' tests: the CPU library, and one with a planted fault."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from visionllm_edge.plugins.cpu.build import FOLDER, build_library, find_compiler
from visionllm_edge.plugins.cpu.library import find_library
from visionllm_edge.plugins.cpu.sources import HEADERS, SOURCES

PlantFault = Callable[[str, str, str], Path]


@pytest.fixture(scope="session")
def cpu_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library of the sources as they are now: the installed one unless a source is newer."""
    installed = find_library()
    if installed is not None:
        sources = [FOLDER.parent / path for path in (*SOURCES, *HEADERS)]
        if installed.stat().st_mtime >= max(path.stat().st_mtime for path in sources):
            return installed
    if find_compiler() is None:
        pytest.skip("no C++ compiler: the CPU kernels cannot be built")
    return build_library(tmp_path_factory.mktemp("cpu") / "kernels.so")


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
