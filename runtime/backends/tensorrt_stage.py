"""One engine with its ports: buffers taken once, a stream of its own, graphs for hot shapes.

What a run does, in the order of the stream: numpy inputs go through pinned memory to the device;
the engine runs; outputs for the host come back through pinned memory. A run whose shapes,
addresses and host-side values were seen twice is recorded with its copies and replayed by one call.

The cache of a decoder stays on the device. Where the engine says that an output shares its input's
memory there is one buffer for each; otherwise there are two, read and written in turns.

Asked to, a stage also times its runs on the device, apart from the copies around them.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from visionllm_edge.runtime.backends.base import KVCache
from visionllm_edge.runtime.backends.cache_shape import cache_ports, cache_shape, present_of
from visionllm_edge.runtime.backends.tensorrt_engine import EngineEnds, choose_profile
from visionllm_edge.runtime.device.arrays import DeviceArray, array_from_foreign
from visionllm_edge.runtime.device.base import Device, DeviceBuffer, Stream
from visionllm_edge.runtime.device.graphs import RecordedCalls
from visionllm_edge.runtime.device.memory import BufferPool, Lane
from visionllm_edge.runtime.device.timing import RunTimer
from visionllm_edge.runtime.errors import BackendError
from visionllm_edge.runtime.ports import (
    Array,
    Port,
    StagePorts,
    Tensor,
    bind_inputs,
    numpy_dtype,
    resolve_shape,
    shape_text,
)

__all__ = ["DeviceCache", "Messages", "TensorRTStage"]

_MESSAGES_KEPT = 8

# What TensorRT asks of an address. Memory of ours always has it, a slice of a torch tensor may not.
_ALIGNMENT_BYTES = 256


class Messages(threading.local):
    """What TensorRT said to a thread since it was asked to forget: a stage's failure is its own."""

    def __init__(self) -> None:
        """Start empty, in each thread."""
        self._kept: list[str] = []

    def add(self, message: str) -> None:
        """One more; the oldest goes where there are too many."""
        self._kept.append(message)
        del self._kept[:-_MESSAGES_KEPT]

    def clear(self) -> None:
        """Forget them."""
        self._kept.clear()

    def __bool__(self) -> bool:
        """Whether anything was said."""
        return bool(self._kept)

    def __str__(self) -> str:
        """All of them in one line."""
        return "; ".join(self._kept)


class DeviceCache:
    """Key/value buffers on the device, made by one stage and only good for it."""

    def __init__(
        self, stage: TensorRTStage, ports: Sequence[Port], shapes: Mapping[str, tuple[int, ...]],
        capacity: int, aliased: frozenset[str], device: Device, stream: Stream,
    ) -> None:  # fmt: skip
        """Allocate and clear: rows that were never written must hold finite numbers."""
        self.stage = stage
        self.shapes = shapes
        self._types = {port.name: port.dtype for port in ports}
        self._capacity = capacity
        self._device = device
        self._stream = stream
        # One buffer, or two: the first is read, the last is written.
        self._buffers: dict[str, list[DeviceBuffer]] = {}
        for name in shapes:
            size = self._size(name)
            count = 1 if name in aliased else 2
            self._buffers[name] = [device.allocate(size) for _ in range(count)]
            for buffer in self._buffers[name]:
                device.fill(buffer.address, 0, size, stream)

    @property
    def capacity(self) -> int:
        """Rows (positions) that fit."""
        return self._capacity

    @property
    def nbytes(self) -> int:
        """Memory of all buffers."""
        return sum(buffer.nbytes for pair in self._buffers.values() for buffer in pair)

    def array(self, name: str) -> Array:
        """A copy on the host of the buffer behind an input."""
        host: Array = np.empty(self.shapes[name], numpy_dtype(self._types[name]))
        source, _ = self.addresses(name)
        self._device.copy_out(host.ctypes.data, source, host.nbytes, self._stream)
        self._stream.synchronize()
        return host

    def addresses(self, name: str) -> tuple[int, int]:
        """Where to read and where to write."""
        pair = self._buffers[name]
        return pair[0].address, pair[-1].address

    def swap(self) -> None:
        """What was written is read from now on."""
        for pair in self._buffers.values():
            pair.reverse()

    def _size(self, name: str) -> int:
        return math.prod(self.shapes[name]) * numpy_dtype(self._types[name]).itemsize


@dataclass
class _Context:
    """An execution context of one profile and what it was last told."""

    context: Any
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    ran: bool = False


@dataclass(frozen=True)
class _Copy:
    """A copy that belongs to a run; ``way`` is a method of the device."""

    way: str
    target: int
    source: int
    nbytes: int


@dataclass
class _Call:
    """One run, decided in full before anything is put on the stream."""

    profile: int
    shapes: dict[str, tuple[int, ...]]
    addresses: dict[str, int] = field(default_factory=dict)
    before: list[_Copy] = field(default_factory=list)
    after: list[_Copy] = field(default_factory=list)
    host_values: dict[str, bytes] = field(default_factory=dict)

    def key(self) -> Hashable:
        """Everything that a recording freezes."""
        return (
            self.profile,
            tuple(self.shapes.items()),
            tuple(self.addresses.items()),
            tuple(self.before),
            tuple(self.after),
            tuple(self.host_values.items()),
        )


class TensorRTStage:
    """One engine; implements ``StageRunner``. For one thread at a time."""

    def __init__(
        self, trt: Any, engine: Any, ports: StagePorts, ends: EngineEnds, *,
        device: Device, stream: Stream, messages: Messages, owner: object,
    ) -> None:  # fmt: skip
        """Take an engine whose ends were checked; memory is taken when a run needs it.

        The stream is this stage's alone: a recording of another thread would swallow its work.
        """
        self._trt = trt
        self._engine = engine
        self._ports = ports
        self._ends = ends
        self._device = device
        self._stream = stream
        self._pool = BufferPool(device)
        self._messages = messages
        # TensorRT's runtime and logger have to live as long as the engine.
        self._owner = owner
        self._contexts: dict[int, _Context] = {}
        self._scratch: DeviceBuffer | None = None
        self._inputs = {p.name: self._lane(p.name) for p in ports.inputs}
        self._outputs = {p.name: self._lane(p.name) for p in ports.outputs}
        self._calls = RecordedCalls(device, stream, about=f"stage {ports.stage!r}")
        self._done = device.new_event()
        # Inputs of work that is under way: their memory must not be used for anything else.
        self._held: list[object] = []
        self._timer: RunTimer | None = None

    @property
    def ports(self) -> StagePorts:
        """The stage's named ends."""
        return self._ports

    @property
    def recorded(self) -> int:
        """How many kinds of runs are replayed as CUDA graphs."""
        return self._calls.recorded

    def time_device(self) -> None:
        """Time every run from now on. A recording without marks is not replayed any more."""
        if self._timer is None:
            self._timer = RunTimer(self._device, self._done.synchronize)

    def device_times_ms(self) -> Callable[[], tuple[float, float]] | None:
        """Of the last run, if it was timed: a function that waits and gives run and copies."""
        return None if self._timer is None else self._timer.last

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Array]:
        """Run once; the arrays returned are pinned memory that the next run overwrites."""
        given, symbols = self._bind(self._ports.inputs, inputs, self._ends.symbols)
        return self._run_to_host(given, symbols, None)

    def run_kept(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once; the outputs are ``DeviceArray`` objects. Does not wait for the device."""
        given, symbols = self._bind(self._ports.inputs, inputs, self._ends.symbols)
        shapes = {name: _shape(array) for name, array in given.items()}
        call = self._new_call(shapes)
        out_shapes = self._output_shapes(call, symbols, self._ports.outputs)
        kept: dict[str, Tensor] = {}
        for port in self._ports.outputs:
            if port.name in self._ends.on_host:
                raise BackendError(
                    f"stage {self._ports.stage!r}: output {port.name!r} is made in host memory "
                    "and cannot be kept on the device. Use run()."
                )
            nbytes = _nbytes(port, out_shapes[port.name])
            buffer = self._pool.take(port.name, nbytes)
            call.addresses[port.name] = buffer.address
            kept[port.name] = DeviceArray(
                self._device,
                self._stream,
                address=buffer.address,
                shape=out_shapes[port.name],
                element_type=port.dtype,
                owner=buffer,
            )
        self._place_inputs(call, given)
        self._launch(call)
        self._done.record(self._stream)
        self._held = list(given.values())
        return kept

    def new_cache(self, capacity: int) -> DeviceCache:
        """Zeroed key/value buffers on the device."""
        past = cache_ports(self._ports)
        stage, known = self._ports.stage, self._ends.symbols
        shapes = {port.name: cache_shape(stage, port, capacity, known) for port in past}
        choose_profile(self._ports, self._ends.profiles, shapes)
        for output, source in self._ends.aliases.items():
            if source in shapes and output != present_of(source):
                raise BackendError(
                    f"stage {stage!r}: output {present_of(source)!r} expected to share the memory "
                    f"of {source!r}, the engine shares it with {output!r}. Build the bundle again."
                )
        aliased = frozenset(self._ends.aliases.values())
        return DeviceCache(self, past, shapes, capacity, aliased, self._device, self._stream)

    def run_with_cache(self, inputs: Mapping[str, Tensor], cache: KVCache) -> dict[str, Array]:
        """Run once; the cache is updated on the device."""
        stage = self._ports.stage
        if not isinstance(cache, DeviceCache) or cache.stage is not self:
            raise BackendError(
                f"stage {stage!r}: the cache was not made by new_cache() of this stage"
            )
        given_twice = cache.shapes.keys() & inputs.keys()
        if given_twice:
            raise BackendError(
                f"stage {stage!r}: inputs {sorted(given_twice)} are part of the cache; "
                "leave them out, or call run()"
            )
        free = [port for port in self._ports.inputs if port.name not in cache.shapes]
        symbols = dict(self._ends.symbols)
        for port in self._ports.inputs:
            if port.name in cache.shapes:
                axes = zip(port.shape, cache.shapes[port.name], strict=True)
                symbols.update({axis: n for axis, n in axes if isinstance(axis, str)})
        given, symbols = self._bind(free, inputs, symbols)
        outputs = self._run_to_host(given, symbols, cache)
        cache.swap()
        return outputs

    def _lane(self, name: str) -> Lane:
        return Lane(self._device, on_host=name in self._ends.on_host)

    def _bind(
        self, ports: Sequence[Port], inputs: Mapping[str, Tensor], known: Mapping[str, int]
    ) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Check inputs; other libraries' arrays become ours, over the same memory."""
        stage = self._ports.stage
        try:
            given: dict[str, Any] = {
                name: array_from_foreign(name, value, self._device, self._stream)
                for name, value in inputs.items()
            }
        except BackendError as e:
            raise BackendError(f"stage {stage!r}: {e}") from e
        return given, bind_inputs(stage, ports, given, known)

    def _run_to_host(
        self, given: Mapping[str, Tensor], symbols: Mapping[str, int], cache: DeviceCache | None
    ) -> dict[str, Array]:
        cached = {} if cache is None else cache.shapes
        shapes = {name: _shape(array) for name, array in given.items()} | dict(cached)
        call = self._new_call(shapes)
        presents = {present_of(name): name for name in cached}
        ports = [port for port in self._ports.outputs if port.name not in presents]
        out_shapes = self._output_shapes(call, symbols, ports)
        for port in ports:
            nbytes = _nbytes(port, out_shapes[port.name])
            lane = self._outputs[port.name]
            lane.reserve(nbytes)
            call.addresses[port.name] = lane.address
            if lane.copies:
                call.after.append(_Copy("copy_out", lane.host_address, lane.address, nbytes))
        if cache is not None:
            for present, past in presents.items():
                call.addresses[past], call.addresses[present] = cache.addresses(past)
        self._place_inputs(call, given)
        self._launch(call)
        self._held = list(given.values())
        self._wait()
        return {
            port.name: _view(self._outputs[port.name], port, out_shapes[port.name])
            for port in ports
        }

    def _new_call(self, shapes: dict[str, tuple[int, ...]]) -> _Call:
        """Start a call; staging memory is free again when the run before is through."""
        self._done.synchronize()
        self._held.clear()
        if self._timer is not None:
            self._timer.settle()
        return _Call(choose_profile(self._ports, self._ends.profiles, shapes).index, shapes)

    def _output_shapes(
        self, call: _Call, symbols: Mapping[str, int], ports: Sequence[Port]
    ) -> dict[str, tuple[int, ...]]:
        """Shapes of outputs: from the ports, or else from the engine."""
        out = {}
        for port in ports:
            shape = resolve_shape(port, symbols)
            if shape is None:
                context = self._context(call.profile)
                self._set_shapes(context, call.shapes)
                shape = tuple(context.context.get_tensor_shape(port.name))
                if min(shape, default=1) < 1:
                    raise BackendError(
                        f"stage {self._ports.stage!r}: output {port} expected a size that the "
                        f"inputs' sizes settle, the engine says {shape_text(shape)}. Sizes that "
                        "depend on values are not for an engine: lower the stage without them."
                    )
            out[port.name] = shape
        return out

    def _place_inputs(self, call: _Call, given: Mapping[str, Tensor]) -> None:
        """Give every input an address; what is not on the device goes there through its lane."""
        shared = {source: output for output, source in self._ends.aliases.items()}
        for port in self._ports.inputs:
            if port.name not in given:
                continue
            array = given[port.name]
            nbytes = _nbytes(port, _shape(array))
            lane = self._inputs[port.name]
            # An input that the engine overwrites is copied to where the output shall stand.
            target = call.addresses.get(shared.get(port.name, ""))
            on_device = isinstance(array, DeviceArray) and port.name not in self._ends.on_host
            if on_device and isinstance(array, DeviceArray):
                if target is None and array.address % _ALIGNMENT_BYTES == 0:
                    call.addresses[port.name] = array.address
                    continue
                lane.reserve(nbytes)
                target = lane.address if target is None else target
                call.before.append(_Copy("copy_within", target, array.address, nbytes))
                call.addresses[port.name] = target
                continue
            lane.reserve(nbytes)
            _view(lane, port, _shape(array))[...] = np.asarray(array)
            if port.name in self._ends.on_host:
                call.host_values[port.name] = lane.content[:nbytes].tobytes()
            elif lane.copies:
                target = lane.address if target is None else target
                call.before.append(_Copy("copy_in", target, lane.host_address, nbytes))
            elif target is not None:
                call.before.append(_Copy("copy_within", target, lane.address, nbytes))
            call.addresses[port.name] = lane.address if target is None else target

    def _launch(self, call: _Call) -> None:
        """Put a call on the stream, as a recording where there is one."""
        context, timer = self._context(call.profile), self._timer

        def mark(place: int) -> None:
            if timer is not None:
                timer.mark(place, self._stream)

        def prepare() -> bool:
            self._set_shapes(context, call.shapes)
            for name, address in call.addresses.items():
                if not context.context.set_tensor_address(name, address):
                    raise self._failed(f"refused the memory of {name!r}")
            return context.ran

        def enqueue() -> None:
            mark(0)
            for copy in call.before:
                self._copy(copy)
            mark(1)
            if not context.context.execute_async_v3(self._stream.handle):
                raise self._failed("could not run")
            context.ran = True
            mark(2)
            for copy in call.after:
                self._copy(copy)
            mark(3)

        self._messages.clear()
        try:
            key = (call.key(), timer is not None)
            self._calls.run(key, prepare, enqueue, lambda: self._capturable(context))
        except BackendError:
            # What is half on the stream must not outlive the memory it uses.
            self._drain()
            raise
        if timer is not None:
            timer.launched(copies_in=bool(call.before), copies_out=bool(call.after))

    def _capturable(self, context: _Context) -> bool:
        # TensorRT-RTX compiles kernels while it runs and says when it is done with that.
        if hasattr(context.context, "is_stream_capturable"):
            return bool(context.context.is_stream_capturable(self._stream.handle))
        return True

    def _copy(self, copy: _Copy) -> None:
        ways = {
            "copy_in": self._device.copy_in,
            "copy_out": self._device.copy_out,
            "copy_within": self._device.copy_within,
        }
        ways[copy.way](copy.target, copy.source, copy.nbytes, self._stream)

    def _wait(self) -> None:
        try:
            self._stream.synchronize()
        except BackendError as e:
            if self._timer is not None:
                self._timer.forget()
            raise BackendError(f"stage {self._ports.stage!r}: {e}") from e
        finally:
            self._held.clear()

    def _drain(self) -> None:
        try:
            self._stream.synchronize()
        except BackendError:
            # The first error is the one to report.
            return

    def _context(self, index: int) -> _Context:
        """The execution context of a profile; made when first needed.

        Contexts of a stage never run at the same time, so they share their scratch memory.
        """
        if index in self._contexts:
            return self._contexts[index]
        self._messages.clear()
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        if context is None:
            raise self._failed("could not make an execution context")
        scratch_bytes = int(self._engine.device_memory_size_v2)
        if scratch_bytes:
            if self._scratch is None:
                self._scratch = self._device.allocate(scratch_bytes)
            context.set_device_memory(self._scratch.address, scratch_bytes)
        if not context.set_optimization_profile_async(index, self._stream.handle):
            raise self._failed(f"refused optimisation profile {index}")
        self._contexts[index] = _Context(context)
        return self._contexts[index]

    def _set_shapes(self, context: _Context, shapes: Mapping[str, tuple[int, ...]]) -> None:
        if context.shapes == shapes:
            return
        context.ran = False
        context.shapes = {}
        for name, shape in shapes.items():
            if not context.context.set_input_shape(name, shape):
                raise self._failed(f"refused the shape {shape_text(shape)} of input {name!r}")
        context.shapes = dict(shapes)

    def _failed(self, what: str) -> BackendError:
        said = str(self._messages) or "it gave no reason"
        return BackendError(
            f"stage {self._ports.stage!r}: TensorRT {what}: {said}. If this goes on, build the "
            "bundle again on this device; 'visionllm-edge doctor' shows its versions."
        )


def _shape(array: Tensor) -> tuple[int, ...]:
    return tuple(array.shape)


def _nbytes(port: Port, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * numpy_dtype(port.dtype).itemsize


def _view(lane: Lane, port: Port, shape: tuple[int, ...]) -> Array:
    view: Array = lane.content[: _nbytes(port, shape)].view(numpy_dtype(port.dtype))
    return view.reshape(shape)
