"""Which TensorRT is there, what it can do, and the name its parser looks for."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.runtime.engines.small_kit import needs_rtx
from visionllm_edge.runtime.engines.tensorrt_module import (
    link_rtx_library,
    load,
    probe,
    rtx_link_state,
)
from visionllm_edge.runtime.errors import BackendError


def test_an_unknown_backend_is_refused() -> None:
    with pytest.raises(BackendError, match="expected one of tensorrt, tensorrt_rtx"):
        load("onnxruntime")


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed here"
)
def test_a_missing_package_says_where_it_comes_from() -> None:
    with pytest.raises(BackendError, match="JetPack"):
        load("tensorrt")


def test_capabilities_are_probed_also_inside_of_classes() -> None:
    flags = SimpleNamespace(FP16=1)
    found = probe(SimpleNamespace(BuilderFlag=flags, IPluginCreatorV3One=1))
    assert found["plugin_v3"] and found["precision_flags"]
    assert not found["progress_monitor"] and not found["editable_timing_cache"]


@needs_rtx
@pytest.mark.trt
def test_the_record_of_tensorrt_rtx() -> None:
    loaded = load("tensorrt_rtx")
    assert loaded.product.startswith("TensorRT-RTX ")
    # Facts of the releases that exist so far; a new one that differs is worth a look.
    expected = {
        "plugin_v3": True,
        "compute_capabilities": True,
        "runtime_cache": True,
        "progress_monitor": True,
        "add_plugin_v3": False,
        "ahead_of_time_plugins": False,
        "precision_flags": False,
    }
    assert {name: loaded.capabilities[name] for name in expected} == expected


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the wheel unpacks it."""
    (tmp_path / "libtensorrt_rtx.so.1").write_bytes(b"")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    return tmp_path


def test_the_missing_name_is_linked_once(wheel: Path) -> None:
    assert rtx_link_state() == "made at the first build"
    link = link_rtx_library()
    assert link == wheel / "libtensorrt_rtx.so"
    assert link.readlink() == Path("libtensorrt_rtx.so.1")
    assert link_rtx_library() is None and rtx_link_state() == "there"


def test_a_read_only_installation_is_left_alone(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: str) -> None:
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    assert link_rtx_library() is None


def test_without_the_package_there_is_nothing_to_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert link_rtx_library() is None and rtx_link_state() == "not needed"
