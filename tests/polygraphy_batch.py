"""Run many Polygraphy commands in one process: ``python -m tests.polygraphy_batch FILE``.

FILE holds a list of argument lists. Each runs through the entry point of the `polygraphy` program;
importing it and onnx takes longer than most commands. One JSON line per command goes to stdout.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
import time
from pathlib import Path
from typing import Any


def run_one(arguments: list[str]) -> dict[str, Any]:
    from polygraphy.logger import G_LOGGER
    from polygraphy.tools import main

    sys.argv = ["polygraphy", *arguments]
    G_LOGGER.module_severity = G_LOGGER.INFO  # a command line may have changed it
    text, started = io.StringIO(), time.monotonic()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
        try:
            status = main()
        except SystemExit as e:
            status = e.code
    return {
        "arguments": arguments,
        "status": status or 0,
        "seconds": time.monotonic() - started,
        "text": text.getvalue()[-2000:],
    }


def run_all(path: Path) -> None:
    stdout = sys.stdout
    for arguments in json.loads(path.read_text(encoding="utf-8")):
        print(json.dumps(run_one(arguments)), file=stdout, flush=True)


if __name__ == "__main__":
    run_all(Path(sys.argv[1]))
