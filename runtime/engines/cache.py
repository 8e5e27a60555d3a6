"""Engines kept between builds, found by the key of everything that went into them.

An engine is native code: the folder belongs to its user alone, and an entry is taken only if it is
what was stored, byte for byte.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from pathlib import Path

from visionllm_edge.runtime.bundle import sha256_of_file
from visionllm_edge.runtime.engines.record import StageRecord, read_record, write_record

__all__ = ["CACHE_VARIABLE", "EngineCache", "default_engine_cache"]

CACHE_VARIABLE = "VISIONLLM_EDGE_CACHE"
_ENGINE, _RECORD = "stage.engine", "record.json"
_log = logging.getLogger(__name__)


def default_engine_cache() -> Path:
    """`engines` in `$VISIONLLM_EDGE_CACHE`, else in the user's cache directory."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named) / "engines"
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "visionllm-edge" / "engines"


class EngineCache:
    """Entries below one folder.

    Args:
        folder: made when the first engine is stored, for its owner only.
    """

    def __init__(self, folder: Path) -> None:
        """Note the folder."""
        self.folder = folder

    def get(self, key: str, engine: Path) -> StageRecord | None:
        """Copy a stored engine to a place; None if there is no sound entry."""
        entry = self.folder / key
        if not entry.is_dir() or not self._is_ours():
            return None
        record = read_record(entry / _RECORD, entry / _ENGINE, key)
        if record is None:
            shutil.rmtree(entry, ignore_errors=True)
            _log.warning("engine cache: removed a damaged entry, the engine is built again")
            return None
        shutil.copyfile(entry / _ENGINE, engine)
        # The copy is what gets used; a file that changed under the check must not pass.
        return record if sha256_of_file(engine) == record.engine_sha256 else None

    def put(self, record: StageRecord, engine: Path) -> None:
        """Store an engine with its record; a full or read-only disk only costs the entry."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not self._is_ours():
                return
            partial = self.folder / f".partial-{secrets.token_hex(6)}"
            partial.mkdir(mode=0o700)
            try:
                shutil.copyfile(engine, partial / _ENGINE)
                write_record(partial / _RECORD, record)
                entry = self.folder / record.key
                shutil.rmtree(entry, ignore_errors=True)
                partial.rename(entry)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        except OSError as e:
            _log.warning("engine cache: %s is not kept (%s)", record.name, e)

    def _is_ours(self) -> bool:
        """Whether only this user can write here; else anyone could plant native code."""
        if not hasattr(os, "getuid"):
            return True
        status = self.folder.stat()
        if status.st_uid == os.getuid() and not status.st_mode & 0o022:
            return True
        _log.warning(
            "engine cache %s: not used, others can write to it. Make it private: chmod 700",
            self.folder,
        )
        return False
