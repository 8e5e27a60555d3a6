from __future__ import annotations

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
        patch.setattr(cache_module, "_source_digest", lambda: "changed")
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
