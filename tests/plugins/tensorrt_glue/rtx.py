"""Start a child process that parses and builds one operator's node with TensorRT-RTX."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
MSDA, POOL = "MultiScaleDeformableAttention", "GridSamplePromptPool"
TYPES = {
    MSDA: lambda t: [t, "int32", "int32", "float32", t, t],
    POOL: lambda t: [t, "float32", "int32", t],
}
SHAPES: dict[str, list[list[int | str]]] = {
    MSDA: [
        ["N", "S", 2, 8],
        [4, 2],
        [4],
        ["N", "Lq", 2, 4, 4, 2],
        ["N", "Lq", 2, 4, 4],
        ["N", "Lq", 2, 8],
    ],
    POOL: [[1, 6, 6, 8], ["R", 20, 30], ["R"], ["R", 8]],
}
PROFILES = {
    MSDA: {
        "value": [[1, 20, 2, 8], [1, 20, 2, 8], [2, 40, 2, 8]],
        "sampling_locations": [[1, 1, 2, 4, 4, 2], [1, 9, 2, 4, 4, 2], [2, 100, 2, 4, 4, 2]],
        "attention_weights": [[1, 1, 2, 4, 4], [1, 9, 2, 4, 4], [2, 100, 2, 4, 4]],
    },
    POOL: {
        "masks": [[1, 20, 30], [2, 20, 30], [9, 20, 30]],
        "region_image": [[1], [2], [9]],
    },
}
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed (extra 'rtx', x86-64 only)",
)


def parse_and_build(folder: Path, op: str, dtype: str, **changes: Any) -> dict[str, Any]:
    """The child's answer; `changes` replace parts of the request."""
    request = {
        "op": op,
        "types": TYPES[op](dtype),
        "shapes": SHAPES[op],
        "profile": PROFILES[op],
        "function": False,
        "plugin": "python",
        **changes,
    }
    question, answer = folder / "request.json", folder / "answer.json"
    question.write_text(json.dumps(request), encoding="utf-8")
    answer.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "tests.plugins.tensorrt_glue.rtx_child", question, answer],
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE.parents[2],
        env=os.environ | {"LD_LIBRARY_PATH": f"{_link_folder(folder)}", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    told: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    told["stderr"] = done.stderr
    return told


def _link_folder(folder: Path) -> Path:
    """A folder with the builder library, also under the name by which the parser opens it.

    The wheel ships `libtensorrt_rtx.so.1` only, and the process would die at the first plugin.
    """
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    assert spec is not None and spec.submodule_search_locations
    for name in ("libtensorrt_rtx.so", "libtensorrt_rtx.so.1"):
        link = folder / name
        if not link.is_symlink():
            place = Path(next(iter(spec.submodule_search_locations)))
            link.symlink_to(place / "libtensorrt_rtx.so.1")
    return folder
