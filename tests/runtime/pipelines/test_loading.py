"""Stages are loaded when asked for, once, and old size buckets are let go."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from visionllm_edge.runtime.backends import StageOptions
from visionllm_edge.runtime.errors import BundleError, InputError, MemoryLimitError
from visionllm_edge.runtime.manifest import LlmSpec
from visionllm_edge.runtime.memory import plan_memory
from visionllm_edge.runtime.pipelines import loading
from visionllm_edge.runtime.pipelines.loading import (
    BundleStages,
    LoadOptions,
    load_pipeline,
    load_text_pipeline,
)

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


def test_stages_without_buckets_are_told_when_loaded(stages: Any) -> None:
    stages.get("sized", BUCKETS[0])
    assert stages.loaded == frozenset()
    stages.get("plain")
    assert stages.loaded == {"plain"}


def test_an_unknown_stage_is_a_bundle_error(stages: Any) -> None:
    with pytest.raises(BundleError, match="nope"):
        stages.get("nope")


def test_one_bucket_may_be_kept(stages: Any) -> None:
    stages._kept = 1
    first = stages.get("sized", BUCKETS[0])
    assert stages.get("sized", BUCKETS[0]) is first
    stages.get("sized", BUCKETS[1])
    assert stages.get("sized", BUCKETS[0]) is not first


def test_a_loaded_stage_does_not_wait_for_one_that_another_thread_loads(
    stages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a stage that two threads ask for is loaded once."""
    plain = stages.get("plain")
    loading_now, go_on = threading.Event(), threading.Event()
    inner = stages._backend.load_stage

    def load_stage(*arguments: Any) -> object:
        loading_now.set()
        assert go_on.wait(20)
        return inner(*arguments)

    monkeypatch.setattr(stages._backend, "load_stage", load_stage)
    got: list[object] = []
    threads = [
        threading.Thread(target=lambda: got.append(stages.get("sized", BUCKETS[0])))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    assert loading_now.wait(20)
    assert stages.get("plain") is plain
    go_on.set()
    for thread in threads:
        thread.join()
    assert got[0] is got[1]
    assert len(stages.log) == 2


@pytest.mark.parametrize(
    ("asked", "backend", "expected"),
    [
        (None, "onnxruntime", False),
        (None, "tensorrt", True),
        (None, "tensorrt_rtx", True),
        (True, "onnxruntime", True),
        (False, "tensorrt", False),
    ],
)
def test_stages_overlap_where_it_pays_or_as_asked(
    asked: bool | None, backend: str, expected: bool
) -> None:
    assert LoadOptions(overlap=asked).overlaps(backend) is expected


def test_another_family_is_refused_with_the_way_to_ask_it() -> None:
    bundle: Any = SimpleNamespace(
        root=Path("some") / "bundle", manifest=SimpleNamespace(family="llama")
    )
    with pytest.raises(BundleError, match=r"'visionllm_v2', got 'llama'.*LanguageModel"):
        load_pipeline(bundle)
    bundle.manifest.family = "visionllm_v2"
    with pytest.raises(BundleError, match=r"'llama', got 'visionllm_v2'.*VisionLLM"):
        load_text_pipeline(bundle)


@pytest.mark.parametrize("options", [{"threads": 0}, {"context": 0}, {"buckets": 0}])
def test_options_that_load_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(options))}: expected at least 1, got 0"):
        LoadOptions(**options)


@pytest.fixture
def small(toy: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bundle of the toy decoder: 1000 bytes of weights, 2 * 2 * 16 * 4 bytes a position."""
    llm = LlmSpec(
        hidden_size=16, num_layers=2, num_kv_heads=1, head_dim=16,
        vocab_size=len(toy.table), max_positions=300,
    )  # fmt: skip
    plain = FakeStage(variants=[SimpleNamespace(bucket=None, model="stages/x.onnx")])
    manifest = SimpleNamespace(
        family="llama",
        target=SimpleNamespace(backend="onnxruntime"),
        model=SimpleNamespace(llm=llm, embed_table="table.npy"),
        stages={"llm_decoder": plain},
        files={"stages/llm_decoder.weights": SimpleNamespace(size=1000)},
        prompt=SimpleNamespace(template="vicuna_v1", system=None),
    )
    monkeypatch.setattr(loading, "_tokenizer", lambda bundle: toy.tokenizer)
    monkeypatch.setattr(
        loading,
        "BundleStages",
        lambda *_, **__: SimpleNamespace(get=lambda name: toy.decoder, loaded=()),
    )
    return SimpleNamespace(
        root=Path("some") / "bundle", manifest=manifest, array=lambda name: toy.table
    )


def test_the_context_is_the_models_or_a_smaller_one(small: Any) -> None:
    assert load_text_pipeline(small).session.capacity == 300
    assert load_text_pipeline(small, LoadOptions(context=40)).session.capacity == 40
    with pytest.raises(InputError, match=r"context: expected at most 300.*got 301"):
        load_text_pipeline(small, LoadOptions(context=301))


def test_memory_decides_about_a_second_cache_and_about_loading(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_memory(small, context=300, buckets=2)
    for free, caches in (
        (plan.total, 1),
        (plan.total + plan.cache - 1, 1),
        (plan.total + plan.cache, 2),
        (None, 1),
    ):
        monkeypatch.setattr(loading, "available_bytes", lambda free=free: free)
        assert load_text_pipeline(small).session._most == caches
    monkeypatch.setattr(loading, "available_bytes", lambda: plan.total - 1)
    with pytest.raises(MemoryLimitError, match="--context"):
        load_text_pipeline(small)
    # A second cache must not take the room of a picture's chain.
    small.manifest.stages["gen_unet"] = small.manifest.stages["llm_decoder"]
    small.manifest.files["stages/gen_unet.weights"] = SimpleNamespace(size=500)
    for free, caches in ((plan.total + plan.cache, 1), (plan.total + plan.cache + 500, 2)):
        monkeypatch.setattr(loading, "available_bytes", lambda free=free: free)
        assert load_text_pipeline(small).session._most == caches
    # Memory of another device is not this machine's, and other stages are not the bundle's.
    decoder = loading.BundleStages(small, StageOptions()).get("llm_decoder")
    stages: Any = SimpleNamespace(get=lambda name: decoder)
    assert load_text_pipeline(small, stages=stages).session._most == 1
    small.manifest.target.backend = "tensorrt"
    assert load_text_pipeline(small).session._most == 1


def test_a_picture_is_held_against_what_is_free_when_it_is_asked_for(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.manifest.stages["edit_unet"] = small.manifest.stages["llm_decoder"]
    small.manifest.files["stages/edit_unet.weights"] = SimpleNamespace(size=500)
    _, _, admit = loading._session(small, LoadOptions(), None, None)
    monkeypatch.setattr(loading, "available_bytes", lambda: 499)
    with pytest.raises(MemoryLimitError, match="edit loads edit_unet"):
        admit("edit")
    admit("generate")
    monkeypatch.setattr(loading, "available_bytes", lambda: 500)
    admit("edit")
    # Another device's memory is not asked.
    small.manifest.target.backend = "tensorrt"
    monkeypatch.setattr(loading, "available_bytes", lambda: 0)
    _, _, admit = loading._session(small, LoadOptions(), None, None)
    admit("edit")
