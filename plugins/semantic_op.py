"""What a semantic operator is: a name, ports in letters, attributes, and its ONNX function.

The letters of a port's shape are the operator's own axes (`spec.py` says what each stands for); the
same letter twice means the same size. Nothing here needs onnx: the function body lives in the
operator's `onnx_function.py` and is imported when asked for.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

__all__ = ["DOMAIN", "PLUGIN_NAMESPACE", "PLUGIN_VERSION", "OpPort", "SemanticOp"]

DOMAIN = "visionllm"
"""ONNX domain of every semantic operator. No operator may carry the name of an ONNX,
com.microsoft or TRT_ operator: TensorRT's parser matches by name and ignores the domain."""

PLUGIN_NAMESPACE = "visionllm"
PLUGIN_VERSION = "1"
"""Both are written on every node: TensorRT 10.15 and later take a plugin in place of a function
only if the node names its namespace."""


@dataclass(frozen=True)
class OpPort:
    """One input or output of an operator.

    Attributes:
        name: name in the specification; also the ONNX formal parameter's name.
        shape: letters and fixed numbers, outermost axis first.
        dtypes: allowed element types; position i of every port together is type combination i.
    """

    name: str
    shape: tuple[str | int, ...]
    dtypes: tuple[str, ...]


@dataclass(frozen=True)
class SemanticOp:
    """An operator of domain `visionllm` whose meaning is fixed and whose form differs per target.

    Attributes:
        name: ONNX op_type.
        summary: one sentence.
        inputs: all are required; no operator has optional inputs (TensorRT cannot omit them).
        outputs: in order.
        attributes: name -> ONNX attribute type (`int`, `float`), plugin attributes not counted.
        module: dotted name of the operator's folder.
    """

    name: str
    summary: str
    inputs: tuple[OpPort, ...]
    outputs: tuple[OpPort, ...]
    attributes: tuple[tuple[str, str], ...]
    module: str

    @property
    def type_combinations(self) -> tuple[tuple[str, ...], ...]:
        """Element types of all inputs then all outputs, one tuple per supported combination."""
        return tuple(zip(*(port.dtypes for port in self.inputs + self.outputs), strict=True))

    def letters(self, shapes: Sequence[tuple[int, ...]]) -> dict[str, int]:
        """Read the size of every letter off the shapes of the inputs.

        Letters are single axes; a port whose shape has products (`H*Dh`) is not supported.

        Args:
            shapes: of the inputs, in order.

        Raises:
            ValueError: wrong number of inputs, wrong rank, a fixed size or a letter that differs.
        """
        if len(shapes) != len(self.inputs):
            raise ValueError(
                f"{self.name}: {len(self.inputs)} input shapes expected, got {len(shapes)}."
            )
        sizes: dict[str, int] = {}
        for port, shape in zip(self.inputs, shapes, strict=True):
            expected = [
                sizes.get(axis, axis) if isinstance(axis, str) else axis for axis in port.shape
            ]
            fits = len(expected) == len(shape) and all(
                isinstance(wanted, str) or wanted == size
                for wanted, size in zip(expected, shape, strict=True)
            )
            if not fits:
                wanted_text, got_text = (", ".join(map(str, axes)) for axes in (expected, shape))
                raise ValueError(
                    f"{self.name}: input '{port.name}' expected shape [{wanted_text}], "
                    f"got [{got_text}]."
                )
            for axis, size in zip(port.shape, shape, strict=True):
                if isinstance(axis, str):
                    sizes[axis] = size
        return sizes

    def onnx_function(self, *, opset: int, **options: int) -> onnx.FunctionProto:
        """Build the operator's meaning in standard ONNX operators.

        Args:
            opset: default-domain opset of the model that will carry the function.
            **options: what the body is unrolled for (`levels` for deformable attention).
        """
        builder = importlib.import_module(f"{self.module}.onnx_function")
        function: onnx.FunctionProto = builder.build_function(opset=opset, **options)
        return function
