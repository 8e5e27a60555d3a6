"""The plan before loading, against a made-up bundle and a made-up system."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from visionllm_edge.runtime.decoder_specs import Making
from visionllm_edge.runtime.errors import MemoryLimitError
from visionllm_edge.runtime.manifest import LlmSpec
from visionllm_edge.runtime.memory import (
    available_bytes,
    check_addition,
    check_memory,
    plan_memory,
)

MB = 10**6
TOTAL = 1_382_800_000


def bundle(
    *,
    precision: str = "fp32",
    cache: str = "float32",
    detector: bool = True,
    pictures: bool = False,
) -> Any:
    """Weights: decoder 1000 MB, encoder 50 MB, detector 100 MB for each of three sizes.

    With pictures, the chain of generation has 310 MB and the one of editing 400 MB.
    """
    plain = SimpleNamespace(variants=[SimpleNamespace(bucket=None, model="stages/x.onnx")])
    sizes = [SimpleNamespace(bucket=(64, w), model=f"stages/d{w}.onnx") for w in (1, 2, 3)]
    stages = {"llm_decoder": plain, "vision_encoder": plain}
    files = {"llm_decoder": 1000 * MB, "vision_encoder": 50 * MB}
    if detector:
        stages["det_encoder"] = SimpleNamespace(variants=sizes)
        files["det_encoder"] = 100 * MB
    chains = {"gen_unet": 300, "gen_vae_decoder": 10, "edit_unet": 320, "edit_adapter": 80}
    for name, size in chains.items() if pictures else ():
        stages[name], files[name] = plain, size * MB
    llm = LlmSpec(
        hidden_size=500, num_layers=10, num_kv_heads=5, head_dim=100, vocab_size=10,
        max_positions=4000, precision=precision, block_size=0 if precision == "fp32" else 32,
        cache=cache,
    )  # fmt: skip
    manifest = SimpleNamespace(
        stages=stages,
        files={f"stages/{k}.weights": SimpleNamespace(size=v) for k, v in files.items()},
        model=SimpleNamespace(llm=llm),
    )
    return SimpleNamespace(manifest=manifest, root=Path("some") / "bundle")


def check(given: Any, available: int | None, context: int = 2000, buckets: int = 2) -> Any:
    return check_memory(given, context=context, buckets=buckets, available=available)


def test_the_plan_counts_weights_cache_and_workspace() -> None:
    plan = plan_memory(bundle(), context=2000, buckets=2)

    assert (plan.decoder, plan.other, plan.bucketed) == (1000 * MB, 250 * MB, 100 * MB)
    assert plan.cache == 2 * 10 * 5 * 100 * 4 * 2000 == 80 * MB
    # 25 rows for each of 256 positions, and 40 MB: a longer prompt takes several runs.
    assert plan.workspace == 25 * 500 * 4 * 256 + 40 * MB == 52_800_000
    assert plan.total == TOTAL
    assert str(plan) == "1,383 MB (weights 1,250 MB, cache 80 MB, workspace 53 MB)"
    assert plan_memory(bundle(), context=100, buckets=2).workspace == 45 * MB
    half = plan_memory(bundle(cache="float16"), context=1000, buckets=1)
    assert (half.cache, half.other, half.bucketed) == (20 * MB, 150 * MB, 0)
    assert plan_memory(bundle(cache="int8"), context=1000, buckets=1).cache == 10 * MB


def test_a_stage_without_a_weights_file_counts_with_its_graph() -> None:
    given = bundle(detector=False)
    files = given.manifest.files
    files["stages/x.onnx"] = files.pop("stages/vision_encoder.weights")
    assert plan_memory(given, context=1, buckets=2).other == 50 * MB


def test_the_chains_of_pictures_are_told_apart_from_what_is_there_from_the_start() -> None:
    plan = plan_memory(bundle(pictures=True), context=2000, buckets=2)
    assert plan.added == {"generate": 310 * MB, "edit": 400 * MB}
    assert (plan.total, plan.total_with_pictures) == (TOTAL, TOTAL + 710 * MB)
    assert str(plan).endswith("; a first generate adds 310 MB; a first edit adds 400 MB")
    assert plan_memory(bundle(), context=2000, buckets=2).total_with_pictures == TOTAL


def test_loading_is_refused_by_what_is_there_from_the_start() -> None:
    assert check(bundle(pictures=True), TOTAL).total == TOTAL
    with pytest.raises(MemoryLimitError, match="a first generate adds 310 MB"):
        check(bundle(pictures=True), TOTAL - 1)


def test_a_picture_is_refused_by_what_it_adds() -> None:
    def add(available: int | None, *loaded: str, making: Making = "edit") -> None:
        check_addition(
            bundle(pictures=True),
            making,
            loaded=loaded,
            context=2000,
            buckets=2,
            available=available,
        )

    add(None)
    add(400 * MB)
    add(310 * MB, making="generate")
    with pytest.raises(MemoryLimitError) as caught:
        add(390 * MB)
    message = str(caught.value)
    assert "edit loads edit_unet, edit_adapter, 400 MB of weights" in message
    assert "at most 390 MB" in message
    assert "--context 1728) saves 11 MB, which is enough" in message
    # What was loaded before is not loaded again.
    add(80 * MB, "edit_unet")
    with pytest.raises(MemoryLimitError, match="edit loads edit_adapter, 80 MB"):
        add(79 * MB, "edit_unet", "gen_unet")
    add(0, "edit_unet", "edit_adapter")


def test_what_fits_or_cannot_be_known_is_not_refused() -> None:
    assert check(bundle(), TOTAL).total == TOTAL
    assert check(bundle(), None).total == TOTAL
    with pytest.raises(MemoryLimitError):
        check(bundle(), TOTAL - 1)


def test_a_refusal_names_ways_that_suffice_first_with_numbers() -> None:
    with pytest.raises(MemoryLimitError) as caught:
        check(bundle(), TOTAL - 50 * MB)
    message = str(caught.value)
    assert "'bundle': needs 1,383 MB" in message and "at most 1,333 MB" in message
    ways = message.split("Ways out: ")[1].rstrip(".").split("; ")
    assert ways == [
        "a context of 704 instead of 2000 (--context 704) saves 52 MB, which is enough",
        "one size bucket at a time (--buckets 1) saves 100 MB, which is enough",
        "a cache of eight bits (compile with --llm-cache int8) saves 60 MB, which is enough",
    ]


def test_the_context_that_is_advised_fits() -> None:
    for available in (1320 * MB, 1350 * MB, 1382 * MB):
        with pytest.raises(MemoryLimitError) as caught:
            check(bundle(), available)
        advised = int(str(caught.value).split("--context ")[1].split(")")[0])
        check(bundle(), available, context=advised)
        with pytest.raises(MemoryLimitError):
            check(bundle(), available, context=advised + 128)


def test_a_way_that_does_not_suffice_comes_later_and_does_not_claim_to() -> None:
    def ways(given: Any, available: int) -> list[str]:
        with pytest.raises(MemoryLimitError) as caught:
            check(given, available)
        return str(caught.value).split("Ways out: ")[1].rstrip(".").split("; ")

    context, narrower, free = ways(
        bundle(precision="int4", cache="float16", detector=False), 500 * MB
    )
    assert context == "a context of 128 instead of 2000 (--context 128) saves 37 MB"
    assert narrower == "a cache of eight bits (compile with --llm-cache int8) saves 20 MB"
    assert free == "643 MB more free, with other programs closed"
    found = ways(bundle(detector=False), 100 * MB)
    assert ["4 bits" in found[0], "8 bits" in found[1], "--context" in found[2]] == [True] * 3
    assert "enough" not in "".join(found)
    four, eight, _ = ways(bundle(detector=False), 350 * MB)
    assert "4 bits" in four and "enough" in four and "8 bits" in eight and "enough" not in eight


def system(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("DOT", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


MEMINFO = "MemTotal:  16000 kB\nMemFree: 1 kB\nMemAvailable:   8000 kB\n"


def test_free_memory_of_the_machine(tmp_path: Path) -> None:
    assert available_bytes(system(tmp_path, proc__meminfo=MEMINFO)) == 8000 * 1024


def test_a_container_may_leave_less(tmp_path: Path) -> None:
    system(
        tmp_path,
        proc__meminfo=MEMINFO,
        proc__self__cgroup="0::/a/b\n",
        sys__fs__cgroup__a__b__memoryDOTmax="max\n",
        sys__fs__cgroup__a__b__memoryDOTcurrent="5\n",
        sys__fs__cgroup__a__memoryDOTmax="4000000\n",
        sys__fs__cgroup__a__memoryDOTcurrent="3000000\n",
        sys__fs__cgroup__a__memoryDOTstat="anon 7\ninactive_file 500000\n",
    )
    assert available_bytes(tmp_path) == 1500000


def test_the_older_interface_of_containers(tmp_path: Path) -> None:
    system(
        tmp_path,
        proc__meminfo=MEMINFO,
        proc__self__cgroup="5:cpu,cpuacct:/x\n4:memory:/host/path\n",
        sys__fs__cgroup__memory__memoryDOTlimit_in_bytes="1000000\n",
        sys__fs__cgroup__memory__memoryDOTusage_in_bytes="1200000\n",
    )
    assert available_bytes(tmp_path) == 0


def test_a_system_that_does_not_say(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) is None
    assert available_bytes(system(tmp_path, proc__meminfo="MemTotal: 5 kB\n")) is None


def test_this_machine() -> None:
    found = available_bytes()
    if Path("/proc/meminfo").exists():
        assert found is not None and 0 <= found < 2**46
    else:
        assert found is None
