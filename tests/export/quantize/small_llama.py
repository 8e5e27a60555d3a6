"""A random Llama whose norms have outlier channels, as those of trained models have."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visionllm_edge.export.config import LlmConfig
from visionllm_edge.export.llm.weights import EMBEDDING, HEAD, expected_shapes
from visionllm_edge.export.quantize.calibration import Calibration
from visionllm_edge.export.quantize.matrix import BlockQuantized

CONFIG = LlmConfig(
    vocab_size=64,
    hidden_size=128,
    intermediate_size=192,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    max_position_embeddings=64,
)
OUTLIERS = (3, 40, 77, 111)


class SmallLlama:
    """Implements `LlmWeights`; counts the tensors that are read."""

    name = "small"

    def __init__(self, config: LlmConfig = CONFIG, seed: int = 0) -> None:
        self.config = config
        self.reads = 0
        self.blocks: dict[str, BlockQuantized] = {}
        rng = np.random.default_rng(seed)
        self.tensors: dict[str, Tensor] = {}
        for name, shape in expected_shapes(config).items():
            if len(shape) == 1:
                values = rng.uniform(0.8, 1.2, shape)
                if "layernorm" in name:
                    values[list(OUTLIERS)] *= 20
            else:
                values = rng.standard_normal(shape) / shape[1] ** 0.5
                if name in (EMBEDDING, HEAD):
                    values *= 2
            self.tensors[name] = torch.from_numpy(values.astype(np.float32))

    def names(self) -> tuple[str, ...]:
        return tuple(self.tensors)

    def tensor(self, name: str) -> Tensor:
        self.reads += 1
        return self.tensors[name]

    def quantized(self, name: str, *, minimums: bool = False) -> BlockQuantized | None:
        return self.blocks.get(name)

    def fingerprint(self) -> str:
        return f"small {float(self.tensors[HEAD].sum())}"


def sequences(config: LlmConfig = CONFIG, *, count: int = 6, seed: int = 1) -> Calibration:
    rng = np.random.default_rng(seed)
    rows: list[NDArray[np.float32]] = [
        rng.standard_normal((40, config.hidden_size)).astype(np.float32) for _ in range(count)
    ]
    return Calibration(tuple(rows), "random rows")
