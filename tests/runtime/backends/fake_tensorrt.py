"""TensorRT in Python: an engine is a function over numpy arrays, run on the fake device.

It is as strict as the real one where that is documented: addresses and shapes must be set, shapes
must lie in the profile, scratch memory must be there, and nothing is recorded that has not run at
the same shapes before. A test holds its members against the real classes.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.runtime.device.fake import FakeBuffer, FakeDevice, FakeStream

Array = NDArray[Any]
Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
NUMPY = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "uint16", "INT64": "int64", "INT32": "int32",
    "INT8": "int8", "UINT8": "uint8", "BOOL": "bool",
}  # fmt: skip
ALIGNMENT = 256


class DataType(enum.Enum):
    FLOAT, HALF, BF16, INT64, INT32, INT8, UINT8, BOOL, FP8 = range(9)


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = range(3)


class TensorLocation(enum.Enum):
    DEVICE, HOST = range(2)


class TensorFormat(enum.Enum):
    LINEAR, CHW32 = range(2)


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class Severity(enum.Enum):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ILogger:
    def __init__(self) -> None:
        self.made = True


@dataclass
class Engine:
    """What the bytes of an engine stand for.

    Attributes:
        inputs: name -> (type, shape), -1 for an open axis.
        outputs: as inputs.
        function: arrays by input name -> arrays by output name.
        profiles: ranges by input name; one empty profile where nothing is open.
        aliases: output -> input of the same memory; the class lacks the method if None.
        on_host: tensors in host memory.
        scratch_bytes: what a context needs.
        layouts: tensors that are not LINEAR.
        capturable: what ``is_stream_capturable`` answers; the class lacks the method if None.
    """

    inputs: dict[str, tuple[str, tuple[int, ...]]]
    outputs: dict[str, tuple[str, tuple[int, ...]]]
    function: Callable[..., Mapping[str, Array]]
    profiles: list[dict[str, Range]] = field(default_factory=lambda: [{}])
    aliases: dict[str, str] | None = None
    on_host: tuple[str, ...] = ()
    scratch_bytes: int = 4096
    layouts: dict[str, str] = field(default_factory=dict)
    capturable: bool | None = None


class ICudaEngine:
    def __init__(self, owner: FakeTensorRT, about: Engine) -> None:
        self._owner, self._about = owner, about
        self._ends = {**about.inputs, **about.outputs}

    @property
    def num_io_tensors(self) -> int:
        return len(self._ends)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._about.profiles)

    @property
    def device_memory_size_v2(self) -> int:
        return self._about.scratch_bytes

    def get_tensor_name(self, index: int) -> str:
        return list(self._ends)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._about.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[self._ends[name][0]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._ends[name][1]

    def get_tensor_format(self, name: str) -> TensorFormat:
        return TensorFormat[self._about.layouts.get(name, "LINEAR")]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name in self._about.on_host else TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return list(self._about.profiles[profile_index][name])

    def create_execution_context(
        self, strategy: ExecutionContextAllocationStrategy
    ) -> IExecutionContext | None:
        if self._owner.planned("create_execution_context"):
            return None
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        kind = IExecutionContext if self._about.capturable is None else CapturableContext
        return kind(self._owner, self._about)


class AliasingEngine(ICudaEngine):
    """Of TensorRT 10.15 and later."""

    def get_aliased_input_tensor(self, name: str) -> str | None:
        assert self._about.aliases is not None
        return self._about.aliases.get(name)


class IExecutionContext:
    def __init__(self, owner: FakeTensorRT, about: Engine) -> None:
        self._owner, self._about = owner, about
        self._shapes = {n: s for n, (_, s) in about.inputs.items() if -1 not in s}
        self._addresses: dict[str, int] = {}
        self._profile: int | None = None
        self._scratch: tuple[int, int] = (0, 0)
        self._ran_with: dict[str, tuple[int, ...]] | None = None

    def set_device_memory(self, memory: int, size: int) -> None:
        assert memory % ALIGNMENT == 0
        self._scratch = memory, size

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if self._owner.planned("set_optimization_profile_async"):
            return False
        self._owner.device.streams[stream_handle].put(lambda: None)
        self._profile = profile_index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        if self._owner.planned("set_input_shape") or self._profile is None:
            return False
        declared = self._about.inputs[name][1]
        ranges = self._about.profiles[self._profile]
        if -1 in declared:
            low, _, high = ranges[name]
            if not all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True)):
                return self._owner.error(f"{name}: {shape} is outside profile {self._profile}")
        elif tuple(shape) != declared:
            return self._owner.error(f"{name}: {shape} is not {declared}")
        self._shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        zeros = {n: np.zeros(s, NUMPY[self._about.inputs[n][0]]) for n, s in self._shapes.items()}
        declared = self._about.outputs[name][1]
        if -1 not in declared:
            return declared
        if self._owner.sizes_depend_on_values:
            return tuple(-1 for _ in declared)
        return tuple(np.asarray(self._about.function(**zeros)[name]).shape)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if self._owner.planned("set_tensor_address"):
            return False
        assert memory % ALIGNMENT == 0, f"{name} at {memory:#x}"
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        device = self._owner.device
        stream = device.streams[stream_handle]
        if self._owner.planned("execute_async_v3"):
            return self._owner.error("planned failure of a layer")
        about, shapes, addresses = self._about, dict(self._shapes), dict(self._addresses)
        missing = [n for n in (*about.inputs, *about.outputs) if n not in addresses]
        open_inputs = [n for n in about.inputs if n not in shapes]
        if missing or open_inputs:
            return self._owner.error(f"not set: {missing} {open_inputs}")
        if about.scratch_bytes > self._scratch[1]:
            return self._owner.error("no scratch memory")
        if stream.recording is not None and self._ran_with != shapes:
            stream.spoiled = "allocation inside a first run"
            return self._owner.error("first run at these shapes while recording")
        for output, source in (about.aliases or {}).items():
            assert addresses[output] == addresses[source], f"{output} must share {source}"
        if stream.recording is None:
            self._ran_with = shapes
        # What the host's memory holds is read now, and frozen into a recording.
        values = {
            n: self._read(n, shapes[n], addresses[n]).copy()
            for n in about.inputs
            if n in about.on_host
        }
        scratch = self._scratch

        def work() -> None:
            device.bytes_at(scratch[0], about.scratch_bytes, "device").fill(0xEE)
            given = {
                n: values[n] if n in values else self._read(n, shapes[n], addresses[n]).copy()
                for n in about.inputs
            }
            self._owner.runs += 1
            device.now_ms += self._owner.run_ms
            for name, array in about.function(**given).items():
                dtype, _ = about.outputs[name]
                array = np.ascontiguousarray(array)
                assert array.dtype == NUMPY[dtype], f"{name} is {array.dtype}"
                self._bytes(name, array.nbytes, addresses[name])[:] = array.reshape(-1).view(
                    np.uint8
                )

        stream.put(work)
        return True

    def _bytes(self, name: str, nbytes: int, address: int) -> NDArray[np.uint8]:
        side = "host" if name in self._about.on_host else "device"
        return self._owner.device.bytes_at(address, nbytes, side)

    def _read(self, name: str, shape: tuple[int, ...], address: int) -> Array:
        dtype = np.dtype(NUMPY[self._about.inputs[name][0]])
        raw = self._bytes(name, math.prod(shape) * dtype.itemsize, address)
        return raw.view(dtype).reshape(shape)


class CapturableContext(IExecutionContext):
    """Of TensorRT-RTX."""

    def is_stream_capturable(self, stream: int) -> bool:
        assert self._about.capturable is not None
        return self._about.capturable


class Runtime:
    def __init__(self, owner: FakeTensorRT, logger: Any) -> None:
        assert logger.made, "ILogger.__init__ was not called"
        self._owner = owner
        owner.logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        self._owner.host_code_allowed = self.engine_host_code_allowed
        about = self._owner.engines.get(bytes(serialized_engine))
        if about is None:
            self._owner.error("the plan was made by another version")
            return None
        kind = ICudaEngine if about.aliases is None else AliasingEngine
        return kind(self._owner, about)


class IPluginRegistry:
    def __init__(self, owner: FakeTensorRT) -> None:
        self._owner = owner

    def load_library(self, plugin_path: str) -> object | None:
        if self._owner.planned("load_library"):
            self._owner.error("wrong ABI")
            return None
        self._owner.libraries.append(plugin_path)
        return object()

    def register_creator(self, creator: object, plugin_namespace: str = "") -> bool:
        return True


class FakeTensorRT:
    """One installation: engines by their bytes, on one device.

    Attributes:
        fail: name of a call -> how many calls from now on fail.
        runs: how often any engine ran.
        run_ms: how long a run takes on the device; read when it runs.
    """

    def __init__(self, device: FakeDevice, engines: Mapping[bytes, Engine]) -> None:
        self.device = device
        self.engines = dict(engines)
        self.fail: dict[str, int] = {}
        self.runs = 0
        self.run_ms = 100.0
        self.libraries: list[str] = []
        self.host_code_allowed: bool | None = None
        self.sizes_depend_on_values = False
        self.logger: Any = None
        self.module = SimpleNamespace(
            __name__="tensorrt",
            __version__="10.3.0",
            DataType=DataType,
            TensorFormat=TensorFormat,
            TensorLocation=TensorLocation,
            TensorIOMode=TensorIOMode,
            ExecutionContextAllocationStrategy=ExecutionContextAllocationStrategy,
            ILogger=ILogger,
            Runtime=lambda logger: Runtime(self, logger),
            get_plugin_registry=lambda: IPluginRegistry(self),
        )

    def load(self, backend: str) -> Any:
        """As ``tensorrt_module.load``."""
        return SimpleNamespace(
            backend=backend, module=self.module, version="10.3.0", product="TensorRT 10.3.0"
        )

    def planned(self, name: str) -> bool:
        left = self.fail.get(name, 0)
        if left:
            self.fail[name] = left - 1
        return bool(left)

    def error(self, message: str) -> bool:
        self.logger.log(Severity.ERROR, message)
        return False


__all__ = ["Engine", "FakeBuffer", "FakeDevice", "FakeStream", "FakeTensorRT"]
