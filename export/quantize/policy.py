"""How precise each part of a language model is: what `--llm-precision` and its companions mean.

===============  ========================================  =====================================
part             weights fp32                              weights int8 or int4
===============  ========================================  =====================================
linears          float32                                   blocks; a source's own blocks are kept
head             float32                                   int8 blocks, or float32 where it is small
norms            float32                                   float32
embedding table  float32                                   float16
cache            float32, or int8                          float16, or int8
===============  ========================================  =====================================

A cache of int8 goes with any weights: its scales come from what the compiled layers make of the
calibration (`cache_scales`).

The final norm is never touched by a scale search: what it gives is what decoders behind the
language model read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from visionllm_edge.runtime.errors import ConfigError

__all__ = [
    "BLOCK_SIZES",
    "CACHES",
    "HEADS",
    "PRECISIONS",
    "SMALL_HEAD_BYTES",
    "Cache",
    "Head",
    "LlmPrecision",
    "block_for",
]

_Choice = TypeVar("_Choice")
Weights = Literal["fp32", "int8", "int4"]
Method = Literal["rtn", "awq", "stored"]
Head = Literal["fp32", "int8"]
Cache = Literal["float32", "float16", "int8"]

PRECISIONS: dict[str, tuple[Weights, Method]] = {
    "fp32": ("fp32", "rtn"),
    "int8": ("int8", "rtn"),
    "int4": ("int4", "rtn"),
    "int4-awq": ("int4", "awq"),
    "stored": ("int8", "stored"),
}
BLOCK_SIZES = (32, 64, 128)
HEADS: tuple[Head, ...] = get_args(Head)
CACHES: tuple[Cache, ...] = get_args(Cache)

SMALL_HEAD_BYTES = 8 << 20
"""A head up to this size in float32 stays so by default: reading it takes a fraction of a
millisecond per token, and its rows are exact."""

_SMALLEST_BLOCK = 16


@dataclass(frozen=True)
class LlmPrecision:
    """Precision of every part.

    Attributes:
        weights: of the linears of the layers; as asked for with `stored`, of the checkpoint's own
            blocks once it is read.
        method: round to nearest, with the activation-aware search before it, or the checkpoint's
            own blocks, those with a minimum too, and int8 where it has none.
        block_size: inputs that share a scale; where it does not divide a matrix, the largest half,
            quarter, ... that does is taken. 0 for fp32.
        head: None for the default: by its size where the weights are quantised.
        cache: of keys and values.
    """

    weights: Weights = "fp32"
    method: Method = "rtn"
    block_size: int = 0
    head: Head | None = None
    cache: Cache = "float32"

    @classmethod
    def from_options(
        cls,
        precision: str = "fp32",
        block: int | None = None,
        head: str | None = None,
        cache: str | None = None,
    ) -> LlmPrecision:
        """From the options of the command line; None is the default.

        Raises:
            ConfigError: an unknown word, or a block size for weights that have no blocks.
        """
        _one_of("--llm-precision", precision, tuple(PRECISIONS))
        weights, method = PRECISIONS[precision]
        if weights == "fp32":
            if block is not None:
                raise ConfigError(
                    "--llm-block: expected a quantised precision (int8, int4, int4-awq) beside it, "
                    "got fp32. Leave it out, or choose one with --llm-precision."
                )
            if head == "int8":
                raise ConfigError(
                    "--llm-head int8: expected a quantised precision beside it, got fp32. Leave it "
                    "out, or choose one with --llm-precision."
                )
        if block is not None:
            if method == "stored":
                raise ConfigError(
                    f"--llm-block: expected none beside --llm-precision stored, got {block}. The "
                    "checkpoint's own blocks are kept: leave it out."
                )
            _one_of("--llm-block", block, BLOCK_SIZES)
        chosen_head = None if head is None else _one_of("--llm-head", head, HEADS)
        chosen_cache: Cache = "float32" if weights == "fp32" else "float16"
        if cache is not None:
            chosen_cache = _one_of("--llm-cache", cache, CACHES)
        size = 0 if weights == "fp32" else block or BLOCK_SIZES[0]
        return cls(weights, method, size, chosen_head, chosen_cache)

    @property
    def option(self) -> str:
        """The word of `--llm-precision`: fp32, int8, int4, int4-awq or stored."""
        return {"rtn": self.weights, "awq": "int4-awq", "stored": "stored"}[self.method]

    @property
    def held(self) -> str:
        """What a bundle says of its weights: the option, or the bits of stored ones."""
        return self.weights if self.method == "stored" else self.option

    @property
    def quantized(self) -> bool:
        """Whether the linears are in blocks."""
        return self.weights != "fp32"

    @property
    def rounds(self) -> bool:
        """Whether eight bits hold what is computed: activations of blocks, or a cache of int8."""
        return self.quantized or self.cache == "int8"

    @property
    def calibrated(self) -> bool:
        """Whether compiling reads calibration sequences."""
        return self.method == "awq" or self.cache == "int8"

    @property
    def bits(self) -> int:
        """Per weight of a linear: 4 or 8, 32 for fp32."""
        return {"fp32": 32, "int8": 8, "int4": 4}[self.weights]

    def head_for(self, vocab_size: int, hidden_size: int) -> Head:
        """Precision of a head [V,D]: as chosen, else by its size."""
        if self.head is not None:
            return self.head
        small = vocab_size * hidden_size * 4 <= SMALL_HEAD_BYTES
        return "fp32" if small or not self.quantized else "int8"


def block_for(columns: int, block_size: int) -> int | None:
    """The block size for a matrix with so many inputs; None if it cannot be cut into blocks.

    SmolLM2's 576 inputs are no multiple of 128: they get blocks of 64.
    """
    while columns % block_size:
        block_size //= 2
        if block_size < _SMALLEST_BLOCK:
            return None
    return block_size


def _one_of(option: str, value: object, choices: tuple[_Choice, ...]) -> _Choice:
    for choice in choices:
        if choice == value:
            return choice
    listed = ", ".join(map(str, choices))
    raise ConfigError(f"{option}: expected one of {listed}, got {value!r}. Choose one of them.")
