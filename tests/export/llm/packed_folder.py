"""LLaMA folders whose matrices are packed as AWQ, GPTQ and compressed-tensors pack them.

Written word by word from the three layouts, without any code of the readers.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from tests.export.llm.llama_folder import SMALL, config_json, random_state
from visionllm_edge.export.llm.weights import EMBEDDING, HEAD

__all__ = ["GROUP", "METHODS", "write_packed_folder"]

GROUP = 32
METHODS: dict[str, dict[str, object]] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm",
            "zero_point": True},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False},
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
            "num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP,
            "symmetric": True}}},
    },
}  # fmt: skip
# Output that stands at each place of an AWQ word, lowest bits first.
_AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)


def write_packed_folder(folder: Path, method: str) -> dict[str, Tensor]:
    """Write the folder; embedding, norms and head stay plain.

    Returns:
        What every tensor stands for, float32.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stored: dict[str, Tensor] = {}
    truth: dict[str, Tensor] = {}
    rng = np.random.default_rng(0)
    for name, tensor in random_state().items():
        if tensor.ndim == 1 or name in (EMBEDDING, HEAD):
            stored[name] = truth[name] = tensor
            continue
        rows, columns = tensor.shape
        codes = rng.integers(0, 16, (rows, columns))
        scales = rng.uniform(0.01, 0.02, (rows, columns // GROUP)).astype(np.float16)
        zeros = rng.integers(5, 12, scales.shape)
        if method == "compressed-tensors":
            zeros[:] = 8
        steps = codes - np.repeat(zeros, GROUP, axis=1)
        wide = np.repeat(scales, GROUP, axis=1).astype(np.float32)
        truth[name] = torch.from_numpy((steps * wide).astype(np.float32))
        stem = name.removesuffix("weight")
        stored |= {stem + e: t for e, t in _pack(method, codes, scales, zeros).items()}
    save_file({name: t.contiguous() for name, t in stored.items()}, folder / "model.safetensors")
    data = config_json(SMALL) | {"quantization_config": METHODS[method]}
    (folder / "config.json").write_text(json.dumps(data), encoding="utf-8")
    return truth


def _pack(
    method: str, codes: NDArray[np.int64], scales: NDArray[np.float16], zeros: NDArray[np.int64]
) -> dict[str, Tensor]:
    rows, columns = codes.shape
    if method == "compressed-tensors":
        return {
            "weight_packed": _words(codes),
            "weight_scale": torch.from_numpy(scales),
            "weight_shape": torch.tensor([rows, columns]),
        }
    if method == "awq":
        order = [word + place for word in range(0, rows, 8) for place in _AWQ_PLACES]
        return {
            "qweight": _words(codes.T[:, order]),
            "qzeros": _words(zeros.T[:, order]),
            "scales": torch.from_numpy(scales.T.copy()),
        }
    return {
        "qweight": _words(codes).T,
        "qzeros": _words(zeros.T - 1),
        "scales": torch.from_numpy(scales.T.copy()),
        "g_idx": torch.arange(columns, dtype=torch.int32) // GROUP,
    }


def _words(numbers: NDArray[np.int64]) -> Tensor:
    """Eight numbers of a row to a word, the first in the lowest bits."""
    packed = [
        [sum(int(row[i + k]) << 4 * k for k in range(8)) for i in range(0, len(row), 8)]
        for row in numbers
    ]
    return torch.from_numpy(np.array(packed, np.uint32).view(np.int32))
