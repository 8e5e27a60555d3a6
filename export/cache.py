"""Content-addressed store of compiled stages: a second compile only copies what has not changed.

An entry is a folder named by the key of everything that goes into a stage: our own source,
versions, config, target, and the fingerprint of the weights. It is written under another name and
renamed when complete; a damaged entry is noticed by its recorded hashes and made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from visionllm_edge.runtime.bundle import (
    lock_folder,
    make_locked_folder,
    sha256_of_file,
    unlock_folder,
)

__all__ = ["CACHE_VARIABLE", "StageCache", "default_cache_folder", "key_of", "package_versions"]

CACHE_VARIABLE = "VISIONLLM_EDGE_CACHE"
_INDEX = "entry.json"

# Whatever can change the graph or its numbers.
_PACKAGES = (
    "visionllm-edge",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxscript",
    "torch",
    "transformers",
)
# Our source that takes part in making a stage, relative to the package's parts.
_SOURCES = (
    ("export", ("*.py",)),
    ("export/components", ("*.py",)),
    ("export/passes", ("*.py",)),
    ("export/stages", ("*.py",)),
    ("plugins", ("*.py", "*/*.py")),
    ("runtime", ("ports.py", "preprocess.py", "releases.py", "resize.py", "targets.py")),
    ("runtime/backends", ("*.py",)),
    ("runtime/shapes_world", ("*.py",)),
)
# What only the language decoder is made by.
_LLM_SOURCES = (
    ("export/llm", ("*.py",)),
    ("export/quantize", ("*.py", "*/*.py")),
)
# Files of export/ that only drive: a change in them leaves the stages as they are.
_DRIVERS = frozenset(
    {
        "bundle_parts.py",
        "cache.py",
        "cli.py",
        "compile.py",
        "compile_llm.py",
        "demo.py",
        "end_to_end.py",
        "progress.py",
        "stage_workers.py",
        "verify.py",
    }
)
_PARTIAL = ".partial-"
_WORK = "work-"
_WORK_KEPT_S = 14 * 24 * 3600


def default_cache_folder() -> Path:
    """`$VISIONLLM_EDGE_CACHE`, else a folder in the user's cache directory."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "visionllm-edge"


def package_versions() -> dict[str, str]:
    """Version of every package that takes part in a compile."""
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def key_of(parts: Mapping[str, Any], *, llm: bool = False) -> str:
    """The key of an entry: SHA-256 of the parts, of our source and of all versions.

    Args:
        parts: what the entry is made from.
        llm: whether it is the language decoder, which has source of its own.
    """
    content = {"parts": parts, "source": _source_digest(llm), "versions": package_versions()}
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@lru_cache(maxsize=2)
def _source_digest(llm: bool) -> str:
    """Of the files as this process found them first, which is the code that it runs."""
    import visionllm_edge.export
    import visionllm_edge.plugins
    import visionllm_edge.runtime

    roots = {
        "export": Path(visionllm_edge.export.__file__).parent,
        "plugins": Path(visionllm_edge.plugins.__file__).parent,
        "runtime": Path(visionllm_edge.runtime.__file__).parent,
    }
    digest = hashlib.sha256()
    for folder, patterns in (*_SOURCES, *(_LLM_SOURCES if llm else ())):
        part, _, rest = folder.partition("/")
        for pattern in patterns:
            for path in sorted((roots[part] / rest).glob(pattern)):
                if part == "export" and path.name in _DRIVERS:
                    continue
                relative = path.relative_to(roots[part]).as_posix()
                digest.update(f"{part}/{relative} {sha256_of_file(path)}\n".encode())
    return digest.hexdigest()


class StageCache:
    """Entries below one folder.

    Args:
        folder: made when the first entry is written, readable by its owner only.
    """

    def __init__(self, folder: Path) -> None:
        """Note the folder."""
        self.folder = folder

    def get(self, key: str) -> Path | None:
        """The folder of a complete, undamaged entry; a damaged one is removed."""
        entry = self.folder / key
        try:
            index = json.loads((entry / _INDEX).read_text(encoding="utf-8"))
            sound = all(
                sha256_of_file(entry / relative) == digest for relative, digest in index.items()
            )
        except FileNotFoundError:
            return None
        except Exception:
            sound = False
        if not sound:
            shutil.rmtree(entry, ignore_errors=True)
            return None
        return entry

    @contextlib.contextmanager
    def writing(self, key: str) -> Iterator[Path]:
        """A folder to fill; it becomes the entry when the block ends without an error."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._clear_leftovers()
        partial, lock = make_locked_folder(self.folder / f"{_PARTIAL}{key[:12]}-", mode=0o700)
        try:
            yield partial
            files = sorted(path for path in partial.rglob("*") if path.is_file())
            index = {path.relative_to(partial).as_posix(): sha256_of_file(path) for path in files}
            (partial / _INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
            entry = self.folder / key
            if entry.exists():
                shutil.rmtree(entry)
            partial.rename(entry)
        finally:
            unlock_folder(lock)
            shutil.rmtree(partial, ignore_errors=True)

    def _clear_leftovers(self) -> None:
        """Remove what killed compiles left; that of running ones is locked."""
        for folder in self.folder.glob(f"{_PARTIAL}*"):
            with contextlib.suppress(OSError):  # another process may clear it, too
                lock = lock_folder(folder)
                if lock is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    unlock_folder(lock)

    @contextlib.contextmanager
    def working(self, key: str) -> Iterator[Path]:
        """A folder for the half-done work on an entry; it outlives an error or an interruption.

        The next block with the same key gets it as it was left. It is removed when a block ends
        without an error. Folders that nobody came back to for two weeks are removed as well.
        """
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        mine = self.folder / f"{_WORK}{key}"
        for other in self.folder.glob(f"{_WORK}*"):
            if other != mine and time.time() - _last_change(other) > _WORK_KEPT_S:
                shutil.rmtree(other, ignore_errors=True)
        mine.mkdir(exist_ok=True, mode=0o700)
        try:
            yield mine
        except BaseException:
            with contextlib.suppress(OSError):
                mine.rmdir()  # nothing was done yet
            raise
        shutil.rmtree(mine, ignore_errors=True)

    def files(self, entry: Path) -> list[str]:
        """Relative paths of an entry's files, without its index."""
        index: dict[str, str] = json.loads((entry / _INDEX).read_text(encoding="utf-8"))
        return sorted(index)


def _last_change(folder: Path) -> float:
    """Seconds since the epoch; now for a folder that has just gone."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.rglob("*")))
    except OSError:
        return time.time()
