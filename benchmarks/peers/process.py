"""Run a process and say what it cost, and how much of the machine others took meanwhile."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from visionllm_edge.benchmarks.foreign_load import busy_s
from visionllm_edge.runtime.errors import BackendError

__all__ = ["Finished", "import_path", "run_process"]

_PACKAGE_FOLDER = Path(__file__).resolve().parents[1]
_LAST_LINES = 8
_POLL_S = 0.05


@dataclass(frozen=True)
class Finished:
    """A process that ended well.

    Attributes:
        stdout: all of it.
        peak_rss_bytes: most memory that was resident at a time, looked up 20 times a second.
        foreign_cores: mean number of cores that other processes kept busy, and the host took away.
    """

    stdout: str
    peak_rss_bytes: int
    foreign_cores: float


def run_process(
    command: Sequence[str], *, name: str, environment: Mapping[str, str] | None = None
) -> Finished:
    """Run to the end.

    Args:
        command: program and arguments.
        name: for errors.
        environment: added to this process's.

    Raises:
        BackendError: it cannot be started or fails; with its last lines.
    """
    before, begin = busy_s(), time.monotonic()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                command, stdout=out, stderr=err, env={**os.environ, **(environment or {})}
            )
        except OSError as error:
            raise BackendError(
                f"{name}: cannot start {command[0]!r}: {error}. Give the right path."
            ) from error
        peak_rss, ended = 0, 0
        while not ended:
            time.sleep(_POLL_S)
            peak_rss = max(peak_rss, _peak_rss(process.pid))
            # Unlike Popen.wait, this also tells what the process used.
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall_s = time.monotonic() - begin
        foreign_s = busy_s() - before - usage.ru_utime - usage.ru_stime
        out.seek(0)
        stdout = out.read().decode(errors="replace")
        err.seek(0)
        stderr = err.read().decode(errors="replace")
    if process.returncode != 0:
        last = "\n".join((stderr or stdout).strip().splitlines()[-_LAST_LINES:])
        raise BackendError(
            f"{name}: expected {os.path.basename(command[0])} to succeed, it ended with "
            f"{process.returncode}:\n{last}"
        )
    return Finished(stdout, peak_rss, max(0.0, foreign_s / wall_s))


def import_path(folder: Path) -> str:
    """A folder for PYTHONPATH, from which another environment imports these modules by name.

    Args:
        folder: an empty one, which gets a namespace package with a link to this folder.
    """
    package = folder / "visionllm_edge"
    package.mkdir(parents=True)
    (package / "benchmarks").symlink_to(_PACKAGE_FOLDER, target_is_directory=True)
    return str(folder)


def _peak_rss(pid: int) -> int:
    """The most so far; 0 if it has ended."""
    # ru_maxrss of a child counts what this process held before it became another program.
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    found = [line for line in lines.splitlines() if line.startswith("VmHWM:")]
    return int(found[0].split()[1]) * 1024 if found else 0
