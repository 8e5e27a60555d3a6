"""A stand-in for `tensorrt.plugin` (10.9 to 11.4), shaped like the published bindings.

The rules are those that the bindings' own validation enforces: every parameter annotated and
without default, tensors by their class, an `aot_impl` that repeats the names and ends in
`outputs, tactic`, the four parts of its return annotation, the names a launch may have.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from types import ModuleType
from typing import Any

from tests.plugins.tensorrt_glue.fakes import FakeTensorRT


class SymInt32:
    def __init__(self, value: int | str | SymInt32) -> None:
        self.value: int | str = value.value if isinstance(value, SymInt32) else value

    @property
    def is_constant(self) -> bool:
        return isinstance(self.value, int)

    def constant_value(self) -> int:
        assert isinstance(self.value, int), "not accessible for non-constant expressions"
        return self.value


class TensorDesc:
    def __init__(self, shape_expr: tuple[Any, ...], dtype: object) -> None:
        self.shape_expr = tuple(SymInt32(size) for size in shape_expr)
        self.dtype = dtype


class SymExprs:
    def __init__(self, length: int) -> None:
        self.items: list[Any] = [None] * length

    def __setitem__(self, index: int, value: object) -> None:
        assert isinstance(value, SymInt32)
        self.items[index] = value


class KernelLaunchParams:
    NAMES = (
        *(f"{kind}_{axis}" for kind in ("grid", "block") for axis in "xyz"),
        "shared_mem",
    )

    def __setattr__(self, name: str, value: int | SymInt32) -> None:
        if name not in self.NAMES:
            raise AttributeError(f"KernelLaunchParams object has no attribute '{name}'")
        self.__dict__[name] = SymInt32(value)


def cdiv(first: SymInt32, second: int) -> SymInt32:
    if isinstance(first.value, int):
        return SymInt32(-(-first.value // second))
    return SymInt32(f"ceil({first.value}/{second})")


class QuickPlugins(ModuleType):
    def __init__(self) -> None:
        super().__init__("tensorrt.plugin")
        self.TensorDesc = TensorDesc
        self.SymInt32 = SymInt32
        self.SymExprs = self.SymIntExprs = SymExprs
        self.KernelLaunchParams = KernelLaunchParams
        self.cdiv = cdiv
        self.from_shape_expr = TensorDesc
        self.described: dict[str, tuple[Callable[..., Any], list[str]]] = {}
        self.kernels: dict[str, Callable[..., Any]] = {}

    def register(self, plugin_id: str, lazy_register: bool = False) -> Callable[..., Any]:
        def decorator(function: Callable[..., Any]) -> Callable[..., Any]:
            signature = inspect.signature(function)
            for name, parameter in signature.parameters.items():
                assert parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD, name
                assert parameter.default is inspect.Parameter.empty, name
                assert issubclass(parameter.annotation, TensorDesc), name
            assert issubclass(signature.return_annotation, TensorDesc)
            self.described[plugin_id] = function, list(signature.parameters)
            return function

        return decorator

    def aot_impl(self, plugin_id: str) -> Callable[..., Any]:
        def decorator(function: Callable[..., Any]) -> Callable[..., Any]:
            signature = inspect.signature(function)
            names = self.described[plugin_id][1]
            assert list(signature.parameters) == [*names, "outputs", "tactic"]
            for name in names:
                assert issubclass(signature.parameters[name].annotation, TensorDesc)
            outputs = signature.parameters["outputs"].annotation
            assert typing.get_origin(outputs) is tuple
            assert issubclass(typing.get_args(outputs)[0], TensorDesc)
            assert signature.parameters["tactic"].annotation is int
            returned = signature.return_annotation
            assert typing.get_origin(returned) is tuple
            name, image, params, scalars = typing.get_args(returned)
            for part in (name, image):
                assert typing.get_origin(part) in (typing.Union, types.UnionType)
                assert set(typing.get_args(part)) == {str, bytes}
            assert issubclass(params, KernelLaunchParams)
            assert issubclass(scalars, SymExprs)
            self.kernels[plugin_id] = function
            return function

        return decorator


class QuickTensorRT(FakeTensorRT):
    """A release with ahead-of-time plugins."""

    def __init__(self) -> None:
        super().__init__("tensorrt_with_quick_plugins")
        self.IPluginV3QuickAOTBuild = object
        self.plugin = QuickPlugins()
