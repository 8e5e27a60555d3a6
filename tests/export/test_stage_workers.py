"""Processes that build stages end without a word."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import multiprocessing
from pathlib import Path

from visionllm_edge.export.cache import StageCache
from visionllm_edge.export.stage_workers import StageWorkers


def make_lock():
    import builtins

    builtins.kept = multiprocessing.get_context("spawn").RLock()


if __name__ == "__main__":
    with StageWorkers(Path("."), StageCache(Path("cache")), "cpu", 1) as workers:
        workers._pool.apply(make_lock)
"""


def test_a_semaphore_of_a_worker_is_not_complained_of(tmp_path: Path) -> None:
    # Progress bars make one in every process that imports them.
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
