"""Stages are loaded when asked for, once, and old size buckets are let go."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from visionllm_edge.runtime.backends import StageOptions
from visionllm_edge.runtime.errors import BundleError
from visionllm_edge.runtime.pipelines import loading
from visionllm_edge.runtime.pipelines.loading import BundleStages, load_pipeline

BUCKETS = [(64, 64), (64, 96), (96, 64)]


class FakeStage(SimpleNamespace):
    """As much of a manifest's stage as loading needs."""

    def ports(self, name: str) -> str:
        return f"ports of {name}"


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Any:
    log: list[str] = []

    def load_stage(path: Path, ports: str, options: StageOptions) -> object:
        log.append(f"{path.name} {ports} {options.threads}")
        return object()

    def stage_model(name: str, bucket: tuple[int, int] | None) -> Path:
        if name not in specs:
            raise BundleError(f"no stage {name!r}")
        return Path(f"{name}-{bucket}")

    specs = {
        "plain": FakeStage(variants=[SimpleNamespace(bucket=None)]),
        "sized": FakeStage(variants=[SimpleNamespace(bucket=b) for b in BUCKETS]),
    }
    bundle: Any = SimpleNamespace(
        manifest=SimpleNamespace(target=SimpleNamespace(backend="fake"), stages=specs),
        stage_model=stage_model,
    )
    backend = SimpleNamespace(load_stage=load_stage)
    monkeypatch.setattr(loading, "load_backend", lambda name: {"fake": backend}[name])
    out: Any = BundleStages(bundle, StageOptions(threads=3))
    out.log = log
    return out


def test_nothing_is_loaded_before_it_is_asked_for_and_nothing_twice(stages: Any) -> None:
    assert stages.log == []
    first = stages.get("plain")
    assert stages.get("plain") is first
    assert stages.log == ["plain-None ports of plain 3"]


def test_a_stage_without_buckets_serves_every_bucket(stages: Any) -> None:
    assert stages.get("plain", BUCKETS[0]) is stages.get("plain", BUCKETS[1])
    assert stages.get("plain") is stages.get("plain", BUCKETS[0])


def test_the_oldest_bucket_is_let_go(stages: Any) -> None:
    kept = stages.get("sized", BUCKETS[0])
    stages.get("sized", BUCKETS[1])
    assert stages.get("sized", BUCKETS[0]) is kept
    stages.get("sized", BUCKETS[2])  # the second one is the oldest now
    assert stages.get("sized", BUCKETS[0]) is kept
    stages.get("sized", BUCKETS[1])
    assert len(stages.log) == 4


def test_an_unknown_stage_is_a_bundle_error(stages: Any) -> None:
    with pytest.raises(BundleError, match="nope"):
        stages.get("nope")


def test_another_family_is_refused() -> None:
    bundle: Any = SimpleNamespace(
        root=Path("some") / "bundle", manifest=SimpleNamespace(family="visionllm_v1")
    )
    with pytest.raises(BundleError, match=r"'visionllm_v2', got 'visionllm_v1'"):
        load_pipeline(bundle)
