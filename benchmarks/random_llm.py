"""A Llama checkpoint of random weights (``python -m visionllm_edge.benchmarks.random_llm``).

For what needs the size of a language model and not its knowledge: speed, memory, and compiling a
folder larger than the memory. The folder is laid out as Hugging Face's: ``config.json``,
``model-*.safetensors`` with their index, ``tokenizer.json``. One matrix is in memory at a time. A
shard that is complete is kept, so a run that was stopped goes on where it was.

Matrices are normal with standard deviation 1/sqrt(inputs), those that write to the residual stream
smaller by sqrt(2 * layers), so that activations keep the size they have in a trained model. The
tokenizer has one token a byte and a character, and made-up words to fill the vocabulary.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from visionllm_edge.runtime.errors import ConfigError, EdgeError

if TYPE_CHECKING:
    import torch

__all__ = ["SHAPES", "Shape", "random_tensors", "shard_plan", "write_random_llm"]

Dtype = Literal["float16", "bfloat16"]
Progress = Callable[[str], None]

_SHARD_BYTES = 2 << 30
_BYTES_PER_WEIGHT = 2
_SPARE_BYTES = 1 << 30
_SAFETENSORS_DTYPE = {"float16": "F16", "bfloat16": "BF16"}
_SPECIAL = ("<unk>", "<s>", "</s>")
_SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "zo")
_PRINTABLE = tuple(chr(code) for code in range(33, 127))
_SPACE = "▁"


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama, in the words of its ``config.json``."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int = 32000
    max_position_embeddings: int = 2048

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_attention_heads


SHAPES: Mapping[str, Shape] = {
    "tiny-test": Shape(64, 192, 2, 4, 2, vocab_size=768, max_position_embeddings=256),
    "tinyllama-1.1b": Shape(2048, 5632, 22, 32, 4),
    "llama-7b": Shape(4096, 11008, 32, 32, 32, max_position_embeddings=4096),
}


@dataclass(frozen=True)
class _Tensor:
    """One tensor of the checkpoint: (outputs, inputs), or (width,) for a norm.

    Attributes:
        deviation: of the normal distribution; 0 for a norm, which is all ones.
    """

    name: str
    shape: tuple[int, ...]
    deviation: float

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * _BYTES_PER_WEIGHT


def write_random_llm(
    folder: Path,
    shape: Shape,
    *,
    dtype: Dtype = "float16",
    seed: int = 0,
    shard_bytes: int = _SHARD_BYTES,
    progress: Progress = lambda text: None,
) -> None:
    """Write the folder; shards that are there and complete are kept.

    Args:
        folder: made if missing; must hold nothing of another model.
        shape: see `SHAPES`.
        dtype: of every tensor.
        seed: same seed, same weights.
        shard_bytes: a shard ends before it would grow beyond this.
        progress: gets a line per shard.

    Raises:
        ConfigError: the folder holds another model, or the disk is too small.
    """
    config = json.dumps(_config(shape, dtype, seed), indent=1) + "\n"
    path = folder / "config.json"
    if path.is_file() and path.read_text(encoding="utf-8") != config:
        raise ConfigError(
            f"{folder}: expected an empty folder or this shape, dtype and seed, found another "
            "model's config.json. Name another folder."
        )
    shards = shard_plan(shape, shard_bytes)
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    missing = [(i, name) for i, name in enumerate(names) if not _complete(folder / name, shards[i])]
    folder.mkdir(parents=True, exist_ok=True)
    _require_disk(folder, sum(tensor.nbytes for i, _ in missing for tensor in shards[i]))
    path.write_text(config, encoding="utf-8")
    _write_json(folder / "tokenizer.json", _tokenizer(shape.vocab_size))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(shape))
    if len(missing) < len(names):
        progress(f"{len(names) - len(missing)} of {len(names)} shards are there already")
    first = [sum(len(shard) for shard in shards[:i]) for i in range(len(shards))]
    for i, name in missing:
        size = sum(tensor.nbytes for tensor in shards[i])
        progress(f"{name}: {size / 1e9:.2f} GB")
        _write_shard(folder / name, shards[i], dtype, seed, first[i])
    index = {
        "metadata": {"total_size": sum(t.nbytes for shard in shards for t in shard)},
        "weight_map": {
            t.name: name for name, shard in zip(names, shards, strict=True) for t in shard
        },
    }
    _write_json(folder / "model.safetensors.index.json", index)


def random_tensors(
    shape: Shape, *, dtype: Dtype = "float16", seed: int = 0
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that `write_random_llm` writes, by name, made one at a time."""
    for i, tensor in enumerate(_tensors(shape)):
        yield tensor.name, _values(tensor, dtype, _seed_of(seed, i))


def shard_plan(shape: Shape, shard_bytes: int = _SHARD_BYTES) -> list[list[_Tensor]]:
    """Every tensor in file order, cut into shards."""
    shards: list[list[_Tensor]] = [[]]
    for tensor in _tensors(shape):
        if shards[-1] and sum(t.nbytes for t in shards[-1]) + tensor.nbytes > shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    return shards


def _tensors(shape: Shape) -> Iterator[_Tensor]:
    width, inner = shape.hidden_size, shape.intermediate_size
    keys = shape.num_key_value_heads * shape.head_dim

    def matrix(name: str, rows: int, columns: int, gain: float = 1.0) -> _Tensor:
        return _Tensor(f"{name}.weight", (rows, columns), gain / math.sqrt(columns))

    residual = 1 / math.sqrt(2 * shape.num_hidden_layers)
    # Every row passes a norm first, so the deviation only sets how much the first layer adds.
    yield matrix("model.embed_tokens", shape.vocab_size, width, math.sqrt(width) * 0.1)
    for i in range(shape.num_hidden_layers):
        prefix = f"model.layers.{i}"
        yield _Tensor(f"{prefix}.input_layernorm.weight", (width,), 0)
        yield matrix(f"{prefix}.self_attn.q_proj", width, width)
        yield matrix(f"{prefix}.self_attn.k_proj", keys, width)
        yield matrix(f"{prefix}.self_attn.v_proj", keys, width)
        yield matrix(f"{prefix}.self_attn.o_proj", width, width, residual)
        yield _Tensor(f"{prefix}.post_attention_layernorm.weight", (width,), 0)
        yield matrix(f"{prefix}.mlp.gate_proj", inner, width)
        yield matrix(f"{prefix}.mlp.up_proj", inner, width)
        yield matrix(f"{prefix}.mlp.down_proj", width, inner, residual)
    yield _Tensor("model.norm.weight", (width,), 0)
    yield matrix("lm_head", shape.vocab_size, width)


def _header(tensors: list[_Tensor], dtype: Dtype) -> bytes:
    """A safetensors header: 8 bytes of length, then JSON padded to 8 bytes.

    Source: the safetensors format, README of huggingface/safetensors.
    """
    content: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        content[tensor.name] = {
            "dtype": _SAFETENSORS_DTYPE[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _complete(path: Path, tensors: list[_Tensor]) -> bool:
    # Shards get their name when they are complete; the size tells one of another plan.
    length = len(_header(tensors, "float16")), len(_header(tensors, "bfloat16"))
    size = sum(tensor.nbytes for tensor in tensors)
    return path.is_file() and path.stat().st_size - size in length


def _write_shard(path: Path, tensors: list[_Tensor], dtype: Dtype, seed: int, first: int) -> None:
    import torch

    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(_header(tensors, dtype))
        for i, tensor in enumerate(tensors, start=first):
            values = _values(tensor, dtype, _seed_of(seed, i))
            file.write(values.view(torch.int16).numpy().tobytes())
    partial.replace(path)


def _values(tensor: _Tensor, dtype: Dtype, seed: int) -> torch.Tensor:
    import torch

    values = torch.ones(tensor.shape)
    if tensor.deviation:
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(tensor.shape, generator=generator) * tensor.deviation
    return values.to(getattr(torch, dtype))


def _seed_of(seed: int, index: int) -> int:
    return (seed << 20) + index


def _require_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE_BYTES:
        raise ConfigError(
            f"{folder}: expected {needed / 1e9:.1f} GB of free disk and 1 GB to spare, found "
            f"{free / 1e9:.1f} GB. Free some, or name a folder on another disk."
        )


def _config(shape: Shape, dtype: Dtype, seed: int) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "num_key_value_heads": shape.num_key_value_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_position_embeddings,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": dtype,
        "use_cache": True,
        "random_weights_seed": seed,
    }


def _tokenizer(vocab_size: int) -> dict[str, object]:
    """Byte-fallback BPE without merges, as Llama's ``tokenizer.json`` is built."""
    names = [*_SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), _SPACE, *_PRINTABLE]
    assert vocab_size >= len(names), "the vocabulary must hold every byte"
    names += [_word(i) for i in range(vocab_size - len(names))]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": name,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i, name in enumerate(_SPECIAL)
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": _SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 0}},
            ],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {name: i for i, name in enumerate(names)},
            "merges": [],
        },
    }


def _word(number: int) -> str:
    """A different made-up word for every number, three syllables or more."""
    word, number = "", number + len(_SYLLABLES) ** 2
    while number:
        number, digit = divmod(number, len(_SYLLABLES))
        word = _SYLLABLES[digit] + word
    return _SPACE + word


def _tokenizer_config(shape: Shape) -> dict[str, object]:
    return {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": False,
        "model_max_length": shape.max_position_embeddings,
    }


def _write_json(path: Path, content: dict[str, object]) -> None:
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8")


@click.command()
@click.argument("shape", type=click.Choice(list(SHAPES)))
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--dtype",
    type=click.Choice(list(_SAFETENSORS_DTYPE)),
    default="float16",
    show_default=True,
    help="Type of the weights.",
)
@click.option("--seed", type=click.IntRange(0, 1000), default=0, help="Of the weights.")
def main(shape: str, folder: Path, dtype: Dtype, seed: int) -> None:
    """Write a Llama of random weights and the given SHAPE into FOLDER."""
    try:
        write_random_llm(
            folder,
            SHAPES[shape],
            dtype=dtype,
            seed=seed,
            progress=lambda text: click.echo(text, err=True),
        )
    except EdgeError as error:
        raise click.ClickException(str(error)) from error
    click.echo(folder)


if __name__ == "__main__":
    main()
