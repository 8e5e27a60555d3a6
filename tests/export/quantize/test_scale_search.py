from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.export.quantize.small_llama import CONFIG, OUTLIERS, SmallLlama, sequences
from visionllm_edge.export.config import LlmConfig
from visionllm_edge.export.quantize.activations import Activations, LinearInput
from visionllm_edge.export.quantize.layer import LINEARS, LayerRunner, read_layer
from visionllm_edge.export.quantize.scale_search import fold, search_scales, shared_channels


def _inputs() -> dict[str, LinearInput]:
    layer, seen = read_layer(SmallLlama(), 0), Activations(32, 240)
    runner = LayerRunner(CONFIG, 40)
    for rows in sequences().sequences:
        runner.run(layer, torch.from_numpy(rows), seen.watch)
    return {linear: seen.of(linear) for linear in LINEARS}


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("linear", list(LINEARS))
def test_folding_changes_nothing(linear: str, kv_heads: int) -> None:
    config = replace(CONFIG, num_key_value_heads=kv_heads)
    layer = read_layer(SmallLlama(config), 0)
    share = shared_channels(config, linear)
    x = torch.from_numpy(sequences(config).sequences[0])
    runner = LayerRunner(config, len(x))
    before = runner.run(layer, x)
    rng = np.random.default_rng(2)
    scales = np.exp(rng.standard_normal(share.max() + 1)).astype(np.float32)
    fold(layer, linear, scales, share)
    torch.testing.assert_close(runner.run(layer, x), before, atol=2e-4, rtol=2e-4)


def test_folding_divides_what_the_linear_reads() -> None:
    layer = read_layer(SmallLlama(), 0)
    x = torch.from_numpy(sequences().sequences[0])
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in LINEARS}
    runner = LayerRunner(CONFIG, len(x))

    def watch(name: str, rows: torch.Tensor) -> None:
        seen[name].append(rows)

    runner.run(layer, x, watch)
    share = shared_channels(CONFIG, "o")
    scales = np.linspace(0.5, 2, share.max() + 1).astype(np.float32)
    fold(layer, "o", scales, share)
    runner.run(layer, x, watch)
    before, after = seen["o"]
    torch.testing.assert_close(
        after * torch.from_numpy(scales[share]), before, atol=1e-4, rtol=1e-3
    )


def test_outlier_channels_get_large_scales_and_smaller_errors() -> None:
    seen = _inputs()["qkv"]
    layer = read_layer(SmallLlama(), 0)
    matrices = [layer[name].numpy() for name in LINEARS["qkv"]]
    found = search_scales(matrices, seen, np.arange(128), 4, 32)
    assert found is not None and found.error < 0.65
    outliers = found.scales[list(OUTLIERS)]
    assert outliers.min() > 1.5 * np.median(found.scales)


def test_little_is_gained_where_all_channels_are_alike() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((64, 64)).astype(np.float32)
    rows = rng.standard_normal((256, 64)).astype(np.float32)
    seen = LinearInput(np.abs(rows).mean(axis=0), None, rows)
    found = search_scales([weight], seen, np.arange(64), 4, 32)
    assert found is None or found.error > 0.9


def test_heads_of_one_group_share_scales() -> None:
    share = shared_channels(CONFIG, "o")
    assert share.reshape(4, 32).tolist() == [
        list(range(32)), list(range(32)), list(range(32, 64)), list(range(32, 64)),
    ]  # fmt: skip
    wide: LlmConfig = replace(CONFIG, num_key_value_heads=4)
    assert np.array_equal(shared_channels(wide, "o"), np.arange(128))


def test_scaled_inputs_have_scaled_products() -> None:
    seen = _inputs()["qkv"]
    scales: NDArray[np.float32] = np.linspace(0.5, 3, 128).astype(np.float32)
    scaled = seen.scaled(scales)
    assert seen.products is not None and scaled.products is not None
    divided = (seen.products[34, 97] / (scales[34] * scales[97])).item()
    assert scaled.products[34, 97] == pytest.approx(divided, rel=1e-5)
    np.testing.assert_allclose(scaled.rows * scales, seen.rows, rtol=1e-5)


def test_samples_are_spread_over_all_rows() -> None:
    seen = Activations(32, 2000)
    rows = torch.arange(2000, dtype=torch.float32)[:, None].repeat(1, 32)
    for start in range(0, 2000, 130):
        seen.watch("qkv", rows[start : start + 130])
    kept = seen.of("qkv")
    assert kept.rows[:, 0].tolist() == list(range(0, 2000, 2000 // 256))
    assert kept.size[0] == pytest.approx(999.5)
    assert kept.products is not None and kept.products.shape == (32, 32)
