"""From a torch module to a canonical ONNX graph: torch.onnx.export, then the canonical passes.

The result holds standard operators of the stage's opset and semantic operators of domain
`visionllm` with their functions attached; no operator of a vendor. Named inputs and outputs have
the sizes of the stage's ports: a number where the port has one, its symbol where it does not.

The exporter's own optimiser stays off: it can write a graph with dangling inputs. Nothing here
knows targets.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from visionllm_edge.export.passes import CANONICAL_PASSES
from visionllm_edge.runtime.errors import ExportError
from visionllm_edge.runtime.ports import Port, shape_text

__all__ = ["trace"]

_TYPES = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "int64": ir.DataType.INT64,
    "int32": ir.DataType.INT32,
    "bool": ir.DataType.BOOL,
}


def trace(
    module: nn.Module,
    examples: Mapping[str, Tensor],
    *,
    name: str,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    opset: int,
) -> ir.Model:
    """Trace a module and bring the graph into its canonical form.

    Args:
        module: positional tensors in, a tensor or a tuple of tensors out.
        examples: one tensor per input port; every symbolic axis has length 2 or more (the exporter
            turns a length of 1 into a constant).
        name: of the graph, also used in errors.
        inputs: ports in the order of the module's arguments.
        outputs: ports in the order of its results.
        opset: default-domain opset, 18 to 21.

    Raises:
        ExportError: torch cannot trace the module, or the graph's ends differ from the ports.
    """
    arguments = tuple(examples[port.name] for port in inputs)
    axes = [_dynamic_axes(name, port, examples[port.name]) for port in inputs]
    with torch.no_grad(), _quiet():
        try:
            program = torch.onnx.export(
                module.eval(),
                arguments,
                dynamo=True,
                optimize=False,
                opset_version=opset,
                input_names=[port.name for port in inputs],
                output_names=[port.name for port in outputs],
                dynamic_shapes=_nest_like_signature(module, axes),
                verbose=False,
            )
        except (torch.onnx.OnnxExporterError, RuntimeError, ValueError, TypeError) as e:
            raise ExportError(
                f"stage '{name}': torch {torch.__version__} cannot export it: {_root_cause(e)}"
            ) from e
    assert program is not None, "dynamo export returns a program"
    model = program.model
    model.graph.name = name
    for graph_pass in CANONICAL_PASSES:
        graph_pass(model)
    _check_ends(name, "input", inputs, model.graph.inputs)
    _check_ends(name, "output", outputs, model.graph.outputs)
    return model


def _root_cause(error: BaseException) -> str:
    """First line of the innermost error: the exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _dynamic_axes(name: str, port: Port, example: Tensor) -> dict[int, Any] | None:
    """Torch's description of a port's symbolic axes; None where all are fixed."""
    axes: dict[int, Any] = {}
    for index, axis in enumerate(port.shape):
        length = example.shape[index]
        if isinstance(axis, int):
            assert length == axis, f"{name}: example of {port} has axis {index} of {length}"
            continue
        assert length >= 2, f"{name}: example of {port}: length 1 would become a constant"
        axes[index] = torch.export.Dim(axis)
    return axes or None


def _nest_like_signature(module: nn.Module, axes: Sequence[Any]) -> tuple[Any, ...]:
    """Group the axes of a `*args` parameter into one tuple, as torch.export wants them."""
    names = inspect.signature(module.forward).parameters.values()
    fixed = sum(parameter.kind is not inspect.Parameter.VAR_POSITIONAL for parameter in names)
    if fixed == len(names):
        return tuple(axes)
    return (*axes[:fixed], tuple(axes[fixed:]))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence remarks on operators nobody here uses, and on Splits that a pass of ours folds."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _check_ends(name: str, kind: str, ports: Sequence[Port], values: Sequence[ir.Value]) -> None:
    """Compare names, types and sizes of the graph's ends with the ports.

    An output size that the exporter left as an expression takes the port's symbol: the run at
    other sizes proves it right or wrong.
    """
    got = [value.name for value in values]
    if got != [port.name for port in ports]:
        raise ExportError(
            f"stage '{name}': expected {kind}s {[port.name for port in ports]}, the graph has {got}"
        )
    for port, value in zip(ports, values, strict=True):
        shape = [] if value.shape is None else list(value.shape)
        sizes = [axis if isinstance(axis, int) else str(axis) for axis in shape]
        same = len(sizes) == len(port.shape) and all(
            isinstance(want, str) or want == have
            for want, have in zip(port.shape, sizes, strict=True)
        )
        if not same or value.dtype != _TYPES[port.dtype]:
            raise ExportError(
                f"stage '{name}': {kind} expected {port}, the graph has "
                f"{shape_text(sizes)} {value.dtype}"
            )
        frozen = [i for i, want in enumerate(port.shape) if isinstance(want, str)
                  and isinstance(sizes[i], int)]  # fmt: skip
        if frozen:
            raise ExportError(
                f"stage '{name}': {kind} {port}: axis {frozen[0]} should be dynamic, the graph "
                f"fixes it to {sizes[frozen[0]]}. A Python number in the module depends on it."
            )
        value.shape = ir.Shape(port.shape)
