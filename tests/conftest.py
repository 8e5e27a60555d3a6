"""Fixtures shared by all folders: the tiny checkpoint, compiled once per session; CPU kernels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from visionllm_edge.plugins.cpu.build import FOLDER, build_library, find_compiler
from visionllm_edge.plugins.cpu.library import find_library
from visionllm_edge.plugins.cpu.sources import HEADERS, SOURCES

REPOSITORY = Path(__file__).resolve().parents[1]
CHECKPOINT = REPOSITORY / "export" / "tiny" / "checkpoint"


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def tiny_checkpoint() -> Path:
    """The committed checkpoint, in the official folder layout."""
    assert (CHECKPOINT / "config.json").is_file(), f"no checkpoint in {CHECKPOINT}"
    return CHECKPOINT


@pytest.fixture(scope="session")
def tiny_bundle(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the tiny checkpoint, as the command line makes it.

    A child process compiles it: the tracer's memory is given back, and its warnings are its own.
    Tests share the folder, so a test that changes a bundle works on a copy.
    """
    bundle = tmp_path_factory.mktemp("tiny") / "bundle"
    command = ["compile", str(tiny_checkpoint), "-o", str(bundle), "--target", "cpu"]
    done = _run_cli(*command)
    assert done.returncode == 0, f"compile exited {done.returncode}:\n{done.stderr}"
    return bundle


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


def _run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``visionllm-edge`` in a child process of this interpreter."""
    code = "import sys; from visionllm_edge.runtime.cli import main; main(sys.argv[1:])"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
