"""Build the CPU library with the compiler of this machine, without an installation.

Run as ``python -m visionllm_edge.plugins.cpu.build [-o FILE]``: for an installation that was made
where no compiler was, and for tests. ``pip install`` does the same through ``setup.py``, from the
same list of sources and flags. Knows nothing of ONNX Runtime.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from visionllm_edge.plugins.cpu.sources import FLAGS, LIBRARY_STEM, SOURCES

__all__ = ["FOLDER", "CpuBuildError", "build_library", "find_compiler"]

FOLDER = Path(__file__).resolve().parent


class CpuBuildError(RuntimeError):
    """The library could not be built; the message holds the compiler's."""


def find_compiler() -> list[str] | None:
    """The C++ compiler as a command: ``CXX`` if set, else c++, g++ or clang++; None without one."""
    asked = os.environ.get("CXX")
    if asked:
        return shlex.split(asked)
    found = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)
    return [found] if found else None


def build_library(
    output: Path, *, sources: Path = FOLDER.parent, extra_flags: Sequence[str] = ()
) -> Path:
    """Compile and link the library.

    Args:
        output: the file to write.
        sources: a folder laid out like ``plugins``.
        extra_flags: compiler flags that come after ours.

    Returns:
        ``output``.

    Raises:
        CpuBuildError: no compiler, or it failed.
    """
    compiler = find_compiler()
    if compiler is None:
        raise CpuBuildError(
            "CPU kernels: expected a C++17 compiler (c++, g++ or clang++), found none. Install one "
            "or set CXX; without the library the ONNX functions run, slower and equally right."
        )
    files = [str(sources / name) for name in SOURCES]
    command = [*compiler, *FLAGS, *extra_flags, "-fPIC", "-shared", *files, "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CpuBuildError(
            f"CPU kernels: {compiler[0]} failed with exit status {done.returncode}:\n{done.stderr}"
        )
    return output


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    default=FOLDER / f"{LIBRARY_STEM}.so",
    help="File to write; by default where the runtime looks for it.",
)
def main(output: Path) -> None:
    """Build the CPU kernels of the semantic operators."""
    try:
        click.echo(build_library(output))
    except CpuBuildError as e:
        click.echo(f"Error: {e}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
