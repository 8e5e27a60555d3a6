"""The ahead-of-time form: the kernel goes into the engine, which then needs neither Python nor us.

TensorRT 10.9 and later have quickly deployable plugins (`tensorrt.plugin`): three functions say
what an operator's outputs are and which kernel runs with which grid. They are made here from the
operator's table, like everything else. TensorRT-RTX and TensorRT before 10.9 do not have them.

The parser takes this form for a node that also carries the attribute `aot` = 1. One process holds
one creator of a name: register either this form or the Python plugin.

Source: the bindings' `plugin` package (10.9, 10.13, 10.16, 11.4), whose validation the signatures
satisfy.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import GenericAlias, ModuleType
from typing import Any

from visionllm_edge.plugins.semantic_op import PLUGIN_NAMESPACE, SemanticOp
from visionllm_edge.plugins.tensorrt_glue.launch_formula import CeilDiv, launch_formula
from visionllm_edge.plugins.tensorrt_glue.python_plugin import kernel_ops, launch_of, trt_types
from visionllm_edge.plugins.tensorrt_glue.shapes import (
    find_combination,
    output_axes,
    value_dtype,
)

__all__ = ["has_aot", "register_aot"]

# What a launch dimension or scalar is made from: a letter's symbolic size, or a number.
_Sizes = Mapping[str, Any]


def has_aot(trt: ModuleType) -> bool:
    """Whether this TensorRT has the ahead-of-time form."""
    return hasattr(trt, "IPluginV3QuickAOTBuild")


def register_aot(
    trt: ModuleType, *, images: Mapping[str, str | bytes], lazy: bool = False
) -> tuple[str, ...]:
    """Register the ahead-of-time form of the operators that have an image.

    Args:
        trt: `tensorrt`, imported by the caller.
        images: operator name -> PTX by `aot_source.aot_ptx`, for the GPU the engine is built for.
        lazy: leave the registry alone until a plugin is made by `tensorrt.plugin.op`; for
            checks without TensorRT's libraries.

    Returns:
        Names of the registered operators.

    Raises:
        ValueError: an image for an operator without CUDA kernels.
        RuntimeError: this TensorRT does not have the form.
    """
    if not has_aot(trt):
        raise RuntimeError(
            f"{trt.__name__} {getattr(trt, '__version__', '')}: ahead-of-time plugins expected "
            "(TensorRT 10.9 or later), got a release without them. Use the Python plugin or the "
            "plugin library."
        )
    ops = kernel_ops()
    if unknown := sorted(images.keys() - ops.keys()):
        raise ValueError(
            f"images: expected operators among {', '.join(sorted(ops))}, got {unknown}."
        )
    module = importlib.import_module(f"{trt.__name__}.plugin")
    for name, image in images.items():
        op = ops[name]
        plugin_id = f"{PLUGIN_NAMESPACE}::{name}"
        module.register(plugin_id, lazy_register=lazy)(describe_function(trt, module, op))
        module.aot_impl(plugin_id)(kernel_function(trt, module, op, image))
    return tuple(images)


def describe_function(trt: Any, module: Any, op: SemanticOp) -> Callable[..., Any]:
    """The function that tells types and symbolic shapes of the outputs."""
    types = trt_types(trt)
    axes = output_axes(op)

    def describe(*inputs: Any) -> Any:
        combination = _combination(types, op, inputs)
        outputs = []
        for index, sources in enumerate(axes):
            shape = tuple(
                source if isinstance(source, int) else inputs[source[0]].shape_expr[source[1]]
                for source in sources
            )
            dtype = op.type_combinations[combination][len(op.inputs) + index]
            outputs.append(module.from_shape_expr(shape, types[dtype]))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    parameters = [_parameter(port.name, module.TensorDesc) for port in op.inputs]
    returned = module.TensorDesc if len(op.outputs) == 1 else _descriptions(module, op)
    return _with_signature(describe, parameters, returned)


def kernel_function(
    trt: Any, module: Any, op: SemanticOp, image: str | bytes
) -> Callable[..., Any]:
    """The function that tells kernel, launch and scalars."""
    types = trt_types(trt)
    launch = launch_of(op)

    def choose(*arguments: Any) -> tuple[Any, ...]:
        inputs = arguments[: len(op.inputs)]
        combination = _combination(types, op, inputs)
        shapes = [[_known(size) for size in tensor.shape_expr] for tensor in inputs]
        formula = launch_formula(op, launch, shapes, value_dtype(op, combination))
        sizes = {
            axis: tensor.shape_expr[index]
            for port, tensor in zip(op.inputs, inputs, strict=True)
            for index, axis in enumerate(port.shape)
            if isinstance(axis, str)
        }
        params = module.KernelLaunchParams()
        for axis, value in zip("xyz", formula.grid, strict=True):
            setattr(params, f"grid_{axis}", _symbolic(module, value, sizes))
        for axis, value in zip("xyz", formula.block, strict=True):
            setattr(params, f"block_{axis}", value)
        params.shared_mem = formula.shared_bytes
        scalars = module.SymIntExprs(len(formula.scalars))
        for index, scalar in enumerate(formula.scalars):
            size = sizes[scalar] if isinstance(scalar, str) else scalar
            scalars[index] = module.SymInt32(size)
        return formula.kernel, image, params, scalars

    parameters = [_parameter(port.name, module.TensorDesc) for port in op.inputs]
    parameters += [
        _parameter("outputs", _descriptions(module, op)),
        _parameter("tactic", int),
    ]
    text = str | bytes
    returned = GenericAlias(tuple, (text, text, module.KernelLaunchParams, module.SymExprs))
    return _with_signature(choose, parameters, returned)


def _combination(types: Mapping[str, Any], op: SemanticOp, inputs: Sequence[Any]) -> int:
    names = {value: name for name, value in types.items()}
    seen = [names.get(tensor.dtype, str(tensor.dtype)) for tensor in inputs]
    combination = find_combination(op, seen)
    if combination is None:
        raise ValueError(
            f"{op.name}: no supported combination of input types, got {', '.join(seen)}. Cast the "
            "inputs as the operator's table says."
        )
    return combination


def _known(size: Any) -> int:
    return int(size.constant_value()) if size.is_constant else -1


def _symbolic(module: Any, value: int | CeilDiv, sizes: _Sizes) -> Any:
    if isinstance(value, int):
        return value
    size = sizes[value.letter]
    return size if value.step == 1 else module.cdiv(size, value.step)


def _descriptions(module: Any, op: SemanticOp) -> GenericAlias:
    """The annotation of all outputs."""
    return GenericAlias(tuple, (module.TensorDesc,) * len(op.outputs))


def _parameter(name: str, annotation: object) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation)


def _with_signature(
    function: Callable[..., Any], parameters: Sequence[inspect.Parameter], returned: object
) -> Callable[..., Any]:
    """TensorRT reads the tensors' names and kinds off the signature."""
    signature = inspect.Signature(list(parameters), return_annotation=returned)
    function.__signature__ = signature  # type: ignore[attr-defined]
    return function
