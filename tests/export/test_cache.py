from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from visionllm_edge.export import cache as cache_module
from visionllm_edge.export.cache import (
    CACHE_VARIABLE,
    StageCache,
    default_cache_folder,
    key_of,
    package_versions,
)

KEY = "a" * 64


def _fill(cache: StageCache, content: str = "graph") -> None:
    with cache.writing(KEY) as folder:
        (folder / "stages").mkdir()
        (folder / "stages" / "x.onnx").write_text(content)


def test_an_entry_comes_back_with_its_files(tmp_path: Path) -> None:
    cache = StageCache(tmp_path / "cache")
    assert cache.get(KEY) is None
    _fill(cache)
    entry = cache.get(KEY)
    assert entry is not None
    assert cache.files(entry) == ["stages/x.onnx"]
    assert (entry / "stages" / "x.onnx").read_text() == "graph"


def test_a_damaged_entry_is_made_again(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    _fill(cache)
    (tmp_path / KEY / "stages" / "x.onnx").write_text("other")
    assert cache.get(KEY) is None
    assert not (tmp_path / KEY).exists()
    _fill(cache)
    assert cache.get(KEY) is not None


@pytest.mark.parametrize("damage", ["missing file", "broken index"])
def test_other_damage(tmp_path: Path, damage: str) -> None:
    cache = StageCache(tmp_path)
    _fill(cache)
    if damage == "missing file":
        (tmp_path / KEY / "stages" / "x.onnx").unlink()
    else:
        (tmp_path / KEY / "entry.json").write_text("{")
    assert cache.get(KEY) is None
    _fill(cache)
    assert cache.get(KEY) is not None


def test_work_outlives_an_interruption_and_goes_with_the_end(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    with pytest.raises(KeyboardInterrupt), cache.working(KEY) as folder:
        (folder / "layer_0").write_text("long work")
        raise KeyboardInterrupt
    with cache.working(KEY) as folder:
        assert (folder / "layer_0").read_text() == "long work"
    assert list(tmp_path.iterdir()) == []


def test_no_work_leaves_no_folder(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    with pytest.raises(ValueError), cache.working(KEY):
        raise ValueError("nothing done")
    assert list(tmp_path.iterdir()) == []


def test_forgotten_work_is_removed(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    for name, days in (("work-old", 15), ("work-recent", 3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "layer_0").write_text("x")
        then = time.time() - days * 24 * 3600
        os.utime(tmp_path / name / "layer_0", (then, then))
        os.utime(tmp_path / name, (then, then))
    with cache.working(KEY):
        assert {path.name for path in tmp_path.iterdir()} == {"work-recent", f"work-{KEY}"}


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    (tmp_path / ".partial-dead").mkdir()
    with cache.writing(KEY) as running:
        with cache.writing("b" * 64) as other:
            # The lock of the outer block protects it.
            assert running.is_dir() and other.is_dir()
        assert not (tmp_path / ".partial-dead").exists()


def test_the_decoder_has_source_of_its_own() -> None:
    assert key_of({"stage": "x"}) != key_of({"stage": "x"}, llm=True)
    assert key_of({"stage": "x"}, llm=True) == key_of({"stage": "x"}, llm=True)


def test_an_interruption_leaves_no_entry(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    with pytest.raises(KeyboardInterrupt), cache.writing(KEY) as folder:
        (folder / "half").write_text("x")
        raise KeyboardInterrupt
    assert cache.get(KEY) is None
    assert list(tmp_path.iterdir()) == []


def test_a_second_writer_replaces_the_first(tmp_path: Path) -> None:
    cache = StageCache(tmp_path)
    _fill(cache, "old")
    _fill(cache, "new")
    assert (tmp_path / KEY / "stages" / "x.onnx").read_text() == "new"


def test_key_depends_on_parts_source_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"stage": "x", "weights": "sha256:1"}
    first = key_of(parts)
    assert first == key_of(dict(reversed(parts.items())))
    assert first != key_of({**parts, "weights": "sha256:2"})
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "_source_digest", lambda llm: "changed")
        assert key_of(parts) != first
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "package_versions", lambda: {"torch": "0"})
        assert key_of(parts) != first
    assert key_of(parts) == first


def test_versions_name_what_makes_a_graph() -> None:
    assert {"torch", "onnx", "onnxruntime", "onnxscript", "visionllm-edge"} <= set(
        package_versions()
    )


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    assert default_cache_folder() == tmp_path
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "visionllm-edge"
