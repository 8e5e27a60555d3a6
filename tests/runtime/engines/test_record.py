"""Records and keys: whatever changes an engine changes its key; damage is noticed."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.engines.small_kit import attention_plan, sums_plan
from visionllm_edge.runtime.bundle import sha256_of_file
from visionllm_edge.runtime.engines.cache import EngineCache
from visionllm_edge.runtime.engines.plan import NodeForm
from visionllm_edge.runtime.engines.record import (
    BuildKey,
    StageRecord,
    load_record,
    read_record,
    write_record,
)

KEY = BuildKey("tensorrt_rtx", "1.7.1", (89,), "no GPU", {"MultiScaleDeformableAttention": "aa"})
FILES = {"graphs/sums.onnx": "11", "graphs/sums.weights": "22"}


def record(engine: Path, key: str = "k") -> StageRecord:
    return StageRecord(
        name="sums",
        key=key,
        plan="p",
        backend="tensorrt_rtx",
        version="1.7.1",
        device="no GPU",
        engine_sha256=sha256_of_file(engine),
        engine_bytes=engine.stat().st_size,
        parse_s=0.1,
        build_s=0.2,
        peak_rss_bytes=1,
        layers=2,
        plugins=0,
        functions=0,
    )


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "sums.engine"
    path.write_bytes(b"engine")
    return path


@pytest.mark.parametrize(
    "change",
    [
        {"version": "1.7.2"},
        {"backend": "tensorrt"},
        {"sm": (86,)},
        {"device": "another GPU"},
        {"workspace_bytes": 1},
    ],
)
def test_builder_and_device_are_part_of_the_key(change: dict[str, Any]) -> None:
    assert dataclasses.replace(KEY, **change).of(sums_plan(), FILES) != KEY.of(sums_plan(), FILES)


@pytest.mark.parametrize(
    "change",
    [
        {"precision": "fp16"},
        {"flags": ("TF32",)},
        {"profiles": ()},
        {"forms": (NodeForm("n", "Op", "function", "why"),)},
    ],
)
def test_the_plan_is_part_of_the_key(change: dict[str, Any]) -> None:
    assert KEY.of(sums_plan(**change), FILES) != KEY.of(sums_plan(), FILES)


def test_weights_and_plugins_are_part_of_the_key_names_are_not() -> None:
    same = KEY.of(sums_plan(), FILES)
    assert KEY.of(sums_plan(), {**FILES, "graphs/sums.weights": "33"}) != same
    assert KEY.of(sums_plan(stage="other", graph="graphs/x.onnx", golden=None), FILES) == same
    other = dataclasses.replace(KEY, plugins={"MultiScaleDeformableAttention": "bb"})
    assert other.of(sums_plan(), FILES) == same
    assert other.of(attention_plan(), FILES) != KEY.of(attention_plan(), FILES)


def test_a_record_is_good_for_its_key_and_its_engine_only(engine: Path, tmp_path: Path) -> None:
    path = tmp_path / "sums.json"
    write_record(path, record(engine))
    assert read_record(path, engine, "k") == record(engine)
    assert read_record(path, engine, "other") is None
    engine.write_bytes(b"Engine")
    assert read_record(path, engine, "k") is None
    engine.unlink()
    assert read_record(path, engine, "k") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "sums"}'])
def test_a_torn_record_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sums.json"
    path.write_text(text, encoding="utf-8")
    assert load_record(path) is None


def test_the_cache_gives_back_what_was_stored(engine: Path, tmp_path: Path) -> None:
    cache, copy = EngineCache(tmp_path / "cache"), tmp_path / "copy.engine"
    assert cache.get("k", copy) is None
    cache.put(record(engine), engine)
    assert cache.get("k", copy) == record(engine)
    assert copy.read_bytes() == b"engine"
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0


def test_a_damaged_entry_is_removed(
    engine: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = EngineCache(tmp_path / "cache")
    cache.put(record(engine), engine)
    (tmp_path / "cache" / "k" / "stage.engine").write_bytes(b"ENGINE")
    assert cache.get("k", tmp_path / "copy.engine") is None
    assert not (tmp_path / "cache" / "k").exists()
    assert "damaged" in caplog.text


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs POSIX permissions")
def test_a_folder_that_others_can_write_to_is_not_used(
    engine: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = EngineCache(tmp_path / "cache")
    cache.put(record(engine), engine)
    (tmp_path / "cache").chmod(0o777)
    assert cache.get("k", tmp_path / "copy.engine") is None
    assert "others can write" in caplog.text
