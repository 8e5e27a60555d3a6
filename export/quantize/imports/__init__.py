"""Matrices that other tools quantised, read into our blocks.

Codes and scales are taken as they are stored. A zero point becomes an offset per block, the product
of two exact numbers rounded once to float16: at 4 bits that is off by 1/290 of a step at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from visionllm_edge.export.quantize.imports.awq import Awq
from visionllm_edge.export.quantize.imports.compressed_tensors import CompressedTensors
from visionllm_edge.export.quantize.imports.gptq import Gptq
from visionllm_edge.export.quantize.imports.settings import Settings
from visionllm_edge.export.quantize.matrix import BlockQuantized

__all__ = ["Scheme", "read_scheme"]


class Scheme(Protocol):
    """How a checkpoint stores its quantised matrices.

    Attributes:
        parts: endings of the tensors that replace ``weight``; a matrix that has the first of them
            is quantised.
        optional: further endings, where they are there.
    """

    @property
    def parts(self) -> tuple[str, ...]:
        """See the class."""
        ...

    @property
    def optional(self) -> tuple[str, ...]:
        """See the class."""
        ...

    def matrix(self, name: str, tensors: Mapping[str, Tensor]) -> BlockQuantized:
        """One matrix out of its tensors, by ending.

        Raises:
            CheckpointError: tensors that do not fit, or groups that are no blocks.
        """
        ...


_SCHEMES: dict[str, Callable[[Settings], Scheme]] = {
    "awq": Awq,
    "gptq": Gptq,
    "compressed-tensors": CompressedTensors,
}


def read_scheme(config: Mapping[str, object]) -> Scheme:
    """The scheme that a ``quantization_config`` asks for.

    Raises:
        ConfigError: one that is not supported, by field.
    """
    settings = Settings(config)
    return _SCHEMES[settings.expect("quant_method", *_SCHEMES)](settings)
