"""Stand-ins for TensorRT and for the CUDA driver, shaped like the published ones.

`FakeTensorRT` has the members of the bindings that the glue uses, with the binding's rules where
they bite: a base class whose `__init__` was not called before an attribute is set crashes there and
raises here; the registry refuses a second creator of one name.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from visionllm_edge.plugins.cuda.launch import KernelLaunch


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    BF16 = 7
    INT64 = 8


class TensorFormat(enum.Enum):
    LINEAR = 0
    CHW32 = 1


@dataclass
class Desc:
    dims: tuple[int, ...]
    type: DataType
    format: TensorFormat = TensorFormat.LINEAR


@dataclass
class DynamicDesc:
    desc: Desc


@dataclass(frozen=True)
class Expr:
    """A symbolic size: a name, or a constant."""

    value: int | str

    def is_constant(self) -> bool:
        return isinstance(self.value, int)

    def get_constant_value(self) -> int:
        assert isinstance(self.value, int)
        return self.value


class ExprBuilder:
    def constant(self, value: int) -> Expr:
        return Expr(value)


class DimsExprs(list[Any]):
    def __init__(self, rank: int) -> None:
        super().__init__([None] * rank)


def _base(name: str) -> type:
    def init(self: Any) -> None:
        self.__dict__.setdefault("initialised", set()).add(name)

    def set_attribute(self: Any, key: str, value: object) -> None:
        needed = {b.__name__ for b in type(self).__mro__ if "is_binding" in vars(b)}
        missing = needed - self.__dict__.get("initialised", set())
        if missing:
            raise AssertionError(f"{key} set before __init__ of {sorted(missing)}")
        object.__setattr__(self, key, value)

    return type(name, (), {"__init__": init, "__setattr__": set_attribute, "is_binding": True})


class Registry:
    def __init__(self) -> None:
        self.creators: dict[tuple[str, str, str], Any] = {}

    def register_creator(self, creator: Any, namespace: str) -> bool:
        key = (creator.name, creator.plugin_version, namespace)
        if key in self.creators:
            return False
        self.creators[key] = creator
        return True


class FakeTensorRT(ModuleType):
    """What `import tensorrt` gives, as far as a plugin sees it."""

    def __init__(self, name: str = "tensorrt") -> None:
        super().__init__(name)
        for base in (
            "IPluginV3",
            "IPluginV3OneCore",
            "IPluginV3OneBuild",
            "IPluginV3OneRuntime",
            "IPluginCreatorV3One",
        ):
            setattr(self, base, _base(base))
        self.DataType = DataType
        self.TensorFormat = TensorFormat
        self.DimsExprs = DimsExprs
        self.PluginFieldCollection = list
        self.registry = Registry()

    def get_plugin_registry(self) -> Registry:
        return self.registry


@dataclass
class FakeDriver:
    """Records what a plugin asks of CUDA.

    Anything but a launch between `capturing = True` and False is what would break a capture.
    """

    current_context: int = 1
    loaded: list[tuple[int, bytes]] = field(default_factory=list)
    launches: list[tuple[str, KernelLaunch, tuple[int, ...], int]] = field(default_factory=list)
    capturing: bool = False

    def context(self) -> int:
        return self.current_context

    def load(self, image: bytes) -> object:
        self._refuse_in_capture("load")
        self.loaded.append((self.current_context, image))
        return len(self.loaded)

    def function(self, module: object, name: str) -> object:
        self._refuse_in_capture("function")
        return f"{module}:{name}"

    def launch(
        self, function: object, launch: KernelLaunch, pointers: Sequence[int], stream: int
    ) -> None:
        self.launches.append((str(function), launch, tuple(pointers), stream))

    def _refuse_in_capture(self, what: str) -> None:
        if self.capturing:
            raise AssertionError(f"{what} while the stream is being captured")
