"""The tiny checkpoint, quantised both ways, on conversations that the calibration has not seen."""

from pathlib import Path

import numpy as np
import torch

from visionllm_edge.export.checkpoint import Checkpoint, load_model
from visionllm_edge.export.llm.decoder_weights import FINAL_NORM
from visionllm_edge.export.llm.hf_folder import VisionLLMWeights
from visionllm_edge.export.quantize.calibration import Calibration
from visionllm_edge.export.quantize.layer import LayerRunner, Matrices, layer_names, read_layer
from visionllm_edge.export.quantize.picture_calibration import PICTURES, picture_calibration
from visionllm_edge.export.quantize.policy import LlmPrecision
from visionllm_edge.export.quantize.quantize_llm import quantize_llm
from visionllm_edge.export.quantize.store import QuantizedStore
from visionllm_edge.export.tokenizer import convert_tokenizer

TINY = Path(__file__).parents[3] / "export" / "tiny" / "checkpoint"
UNSEEN = 6


def test_hidden_states_are_closer_with_the_search(tmp_path: Path) -> None:
    checkpoint = Checkpoint(TINY)
    weights, model = VisionLLMWeights(checkpoint), load_model(checkpoint)
    tokenizer = convert_tokenizer(TINY, vocab_size=weights.config.vocab_size)
    made = picture_calibration(weights, model, tokenizer, pictures=PICTURES + UNSEEN).sequences
    unseen = [torch.from_numpy(rows) for rows in made[PICTURES : PICTURES + UNSEEN]]
    calibration = Calibration((*made[:PICTURES], *made[PICTURES + UNSEEN :]), "test")
    layers = range(weights.config.num_hidden_layers)
    exact = _hidden(weights, [read_layer(weights, layer) for layer in layers], unseen)

    def error(option: str) -> float:
        precision = LlmPrecision.from_options(option)
        store = quantize_llm(weights, precision, tmp_path / option, calibration=calibration)
        ours = _hidden(weights, [_dequantized(store, layer) for layer in layers], unseen)
        return float((ours - exact).pow(2).sum() / exact.pow(2).sum())

    int8, plain, aware = error("int8"), error("int4"), error("int4-awq")
    assert int8 < 1e-4
    assert plain < 0.01
    assert aware < 0.9 * plain


def _hidden(
    weights: VisionLLMWeights, layers: list[Matrices], sequences: list[torch.Tensor]
) -> torch.Tensor:
    runner, out = LayerRunner(weights.config, max(map(len, sequences))), []
    for rows in sequences:
        for layer in layers:
            rows = runner.run(layer, rows)
        out.append(rows)
    x = torch.cat(out)
    size = torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + weights.config.rms_norm_eps)
    return x * size * weights.tensor(FINAL_NORM).float()


def _dequantized(store: QuantizedStore, layer: int) -> Matrices:
    arrays: dict[str, np.ndarray] = {
        short: store.norm(name) if "norm" in short else store.matrix(name).dequantize()
        for short, name in layer_names(layer).items()
    }
    return {short: torch.from_numpy(array) for short, array in arrays.items()}
