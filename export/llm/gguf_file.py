"""A GGUF file of the llama architecture as weights: memory-mapped, one tensor at a time.

The format itself (header, block formats) is the ``gguf`` package's business. Here: which tensor is
which, and the order of rows. llama.cpp turns neighbouring pairs of a head's rows, Hugging Face the
two halves; its converter therefore interleaves the rows of the query and key matrices, and reading
puts them back: exactly, since whole rows move and no block reaches across rows.

What comes out of a block format:

1. F32, F16, BF16: as stored.
2. Q4_0 and Q8_0: ``tensor`` gives the float32 values, ``quantized`` the blocks themselves (exact).
   llama.cpp gives a Q4_0 block the sign of its largest weight: about half of the scales are
   negative, which TensorRT refuses and every other engine takes.
3. Q4_1: the float32 values, and on demand the blocks with an offset each. The minimum ``m`` becomes
   the offset ``m + 8d`` of the symmetric form; codes and scales are exact, the offset is rounded
   to float16.
4. All others: the float32 values only.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visionllm_edge.export.config import LlmConfig
from visionllm_edge.export.config_section import Section
from visionllm_edge.export.llm.weights import EMBEDDING, HEAD, expected_shapes
from visionllm_edge.export.tensor_files import check_fit
from visionllm_edge.runtime.errors import CheckpointError, ConfigError, ExportError

if TYPE_CHECKING:
    import gguf

    from visionllm_edge.export.quantize.matrix import BlockQuantized

__all__ = ["GgufWeights"]

_NAMES = {"model.norm.weight": "output_norm.weight", EMBEDDING: "token_embd.weight"}
_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OUTPUT = "output.weight"
_BLOCK = 32  # numbers per block of the formats that are kept
_HEAD_BYTES = {"Q8_0": 2, "Q4_0": 2, "Q4_1": 4}  # of a block: its scale, and its minimum
_ZEROS = {4: 0x88, 8: 0x80}  # a byte of codes for zero
_SLAB = 1 << 22  # numbers turned into float32 at a time: temporaries stay under 100 MB


class GgufWeights:
    """An opened GGUF file. Keeps the file mapped as long as it lives."""

    def __init__(self, path: Path) -> None:
        """Read the header and compare it with what the architecture asks for.

        Raises:
            CheckpointError: not a GGUF file, cut off, or without the tensors of its header.
            ConfigError: another architecture, or a variant of this one that is not supported.
            ExportError: the package gguf is not installed.
        """
        self.path = path
        self._reader = _open(path)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        self._config = self._read_config()
        check_fit(
            f"'{path.name}'",
            {_gguf_name(name): shape for name, shape in self._expected().items()},
            {name: _shape(tensor) for name, tensor in self._tensors.items()},
            ignored=lambda name: False,
        )
        self._refuse_formats()

    @property
    def config(self) -> LlmConfig:
        """Sizes and constants."""
        return self._config

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    def names(self) -> tuple[str, ...]:
        """Every tensor of the model; ``lm_head.weight`` also when it is tied."""
        return tuple(expected_shapes(self._config))

    def metadata(self, key: str) -> Any:
        """A value of the header (number, text or list), or None.

        Raises:
            CheckpointError: a text that is not UTF-8.
        """
        field = self._reader.fields.get(key)
        try:
            return None if field is None else field.contents()
        except UnicodeDecodeError as e:
            raise CheckpointError(f"'{self.path.name}': {key}: expected UTF-8, got: {e}.") from e

    def tensor(self, name: str) -> Tensor:
        """One tensor in its stored type, float32 for every block format.

        Raises:
            KeyError: no such name.
        """
        rows, kind = self._rows(name)
        if kind in ("F32", "F16"):
            return torch.from_numpy(np.array(rows))
        if kind == "BF16":
            return torch.from_numpy(np.array(rows)).view(torch.bfloat16)
        import gguf

        out = np.empty(expected_shapes(self._config)[name], np.float32)
        flat = out.reshape(-1, out.shape[-1])
        step = max(1, _SLAB // flat.shape[1])
        for start in range(0, len(flat), step):
            part = np.ascontiguousarray(rows[start : start + step])
            flat[start : start + step] = gguf.dequantize(part, gguf.GGMLQuantizationType[kind])
        return torch.from_numpy(out)

    def quantized(self, name: str, *, minimums: bool = False) -> BlockQuantized | None:
        """The blocks of a Q4_0 or Q8_0 matrix; None for every other format.

        Args:
            name: of the matrix.
            minimums: also take Q4_1.

        Raises:
            KeyError: no such name.
        """
        rows, kind = self._rows(name)
        if kind not in _HEAD_BYTES or (kind == "Q4_1" and not minimums):
            return None
        from visionllm_edge.export.quantize.matrix import BlockQuantized

        head = _HEAD_BYTES[kind]
        codes = _BLOCK if kind == "Q8_0" else _BLOCK // 2
        blocks = np.array(rows).reshape(len(rows), -1, head + codes)
        factors = np.ascontiguousarray(blocks[..., :head]).view(np.float16)
        scales, stored = factors[..., 0], blocks[..., head:]
        if kind == "Q8_0":
            weight, bits = stored ^ np.uint8(0x80), 8  # two's complement to an offset of 128
        else:
            weight, bits = _neighbours(stored), 4
        empty = scales == 0  # a block of zeros; a scale of zero is not allowed
        weight = np.where(empty[..., None], np.uint8(_ZEROS[bits]), weight)
        offset = None
        if kind == "Q4_1":  # a code of 0..15 is one of -8..7 and half of the range more
            lowest = factors[..., 1].astype(np.float32)
            offset = (lowest + 8 * scales.astype(np.float32)).astype(np.float16)
        return BlockQuantized(
            weight=weight,
            scales=np.where(empty, np.float16(1), scales),
            bits=bits,
            block_size=_BLOCK,
            zero_offset=offset,
        )

    def fingerprint(self) -> str:
        """SHA-256 over the configuration and the stored bytes of every tensor."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self._config}\n".encode())
        for name, tensor in sorted(self._tensors.items()):
            digest.update(f"{name} {_shape(tensor)} {tensor.tensor_type.name}\n".encode())
            digest.update(np.ascontiguousarray(tensor.data).view(np.uint8).data)
        return f"sha256:{digest.hexdigest()}"

    def _rows(self, name: str) -> tuple[NDArray[Any], str]:
        """Rows of a tensor as stored (bytes for a block format), in Hugging Face's order."""
        if name == HEAD and self._config.tie_word_embeddings:
            name = EMBEDDING
        stored = self._tensors[_gguf_name(name)]
        rows: NDArray[Any] = stored.data
        if name.endswith("self_attn.q_proj.weight"):
            rows = rows[_row_order(len(rows), self._config.num_attention_heads)]
        elif name.endswith("self_attn.k_proj.weight"):
            rows = rows[_row_order(len(rows), self._config.num_key_value_heads)]
        return rows, stored.tensor_type.name

    def _expected(self) -> dict[str, tuple[int, ...]]:
        shapes = expected_shapes(self._config)
        if self._config.tie_word_embeddings:
            del shapes[HEAD]
        return shapes

    def _refuse_formats(self) -> None:
        import gguf

        for kind in {tensor.tensor_type for tensor in self._tensors.values()}:
            _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
            try:
                gguf.dequantize(np.zeros((1, block_bytes), np.uint8), kind)
            except NotImplementedError as e:
                raise CheckpointError(
                    f"'{self.path.name}': block format {kind.name}: expected one that the package "
                    "gguf can read. Take the file in another format, for example Q8_0 or F16."
                ) from e

    def _read_config(self) -> LlmConfig:
        keys = {key: field for key, field in self._reader.fields.items() if "tokenizer." not in key}
        header = Section(
            {key: self.metadata(key) for key in keys},
            file=f"'{self.path.name}'",
            supported="Only the llama architecture in one file, without experts and without rope "
            "scaling, is supported.",
            wanted="GGUF file of a LLaMA",
        )
        header.expect("general.architecture", "llama")
        header.expect("split.count", 0, 1, optional=True)
        header.expect("llama.expert_count", 0, optional=True)
        header.expect("llama.rope.scaling.type", "none", optional=True)
        if "rope_freqs.weight" in self._tensors:
            raise ConfigError(
                f"'{self.path.name}': rope_freqs.weight: expected no such tensor, got rope scaling "
                "(LLaMA 3.1 and later). LLaMA 1 to 3 and others without it are supported."
            )
        hidden = header.integer("llama.embedding_length")
        heads = header.integer("llama.attention.head_count")
        head_dim = header.integer("llama.attention.key_length", max(1, hidden // heads))
        header.expect("llama.attention.value_length", head_dim, optional=True)
        header.expect("llama.rope.dimension_count", head_dim, optional=True)
        context = header.integer("llama.context_length")
        # Files of Mistral 7B carry this; within one window its attention is that of a LLaMA.
        window = header.integer("llama.attention.sliding_window", context)
        table = self._tensors.get("token_embd.weight")
        rows = None if table is None else _shape(table)[0]
        return LlmConfig(
            vocab_size=header.integer("llama.vocab_size", rows),
            hidden_size=hidden,
            intermediate_size=header.integer("llama.feed_forward_length"),
            num_hidden_layers=header.integer("llama.block_count"),
            num_attention_heads=heads,
            num_key_value_heads=header.integer("llama.attention.head_count_kv", heads),
            rms_norm_eps=_decimal(header.number("llama.attention.layer_norm_rms_epsilon", 1e-5)),
            rope_theta=_decimal(header.number("llama.rope.freq_base", 10000.0)),
            max_position_embeddings=min(context, window),
            head_dim=head_dim,
            tie_word_embeddings=_OUTPUT not in self._tensors,
        )


def _open(path: Path) -> gguf.GGUFReader:
    try:
        import gguf
    except ImportError as e:
        raise ExportError(
            f"'{path.name}': reading GGUF needs the package gguf. "
            "Install it: pip install 'visionllm-edge[export]'"
        ) from e
    try:
        reader = gguf.GGUFReader(path)
    except OSError as e:
        raise CheckpointError(f"'{path}': {e.strerror}.") from e
    except (ValueError, KeyError, IndexError, TypeError, OverflowError) as e:
        raise CheckpointError(
            f"'{path.name}': expected a whole GGUF file, got: {e}. Copy the file again."
        ) from e
    if reader.byte_order != "I":
        raise CheckpointError(f"'{path.name}': expected a little-endian GGUF file, got big-endian.")
    return reader


def _gguf_name(name: str) -> str:
    if name == HEAD:
        return _OUTPUT
    if name in _NAMES:
        return _NAMES[name]
    index, _, part = name.removeprefix("model.layers.").partition(".")
    return f"blk.{index}.{_PARTS[part.removesuffix('.weight')]}.weight"


def _shape(tensor: gguf.ReaderTensor) -> tuple[int, ...]:
    """Rows first; the file counts the other way round."""
    return tuple(int(size) for size in reversed(tensor.shape))


def _row_order(rows: int, heads: int) -> NDArray[np.int64]:
    """Where row i of Hugging Face's order stands in the file: halves out of neighbouring pairs."""
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _neighbours(halves: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Nibbles 0..15 | 16..31 of a block, low and high, to 0|1, 2|3, ... (low = even)."""
    numbers = np.concatenate([halves & 0x0F, halves >> 4], axis=-1)
    out: NDArray[np.uint8] = numbers[..., 0::2] | (numbers[..., 1::2] << 4)
    return out


def _decimal(value: float) -> float:
    """The short decimal number behind a float32 of the header: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value)))
