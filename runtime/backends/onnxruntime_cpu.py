"""ONNX Runtime on the CPU: one session per stage, bound buffers, a cache updated in place.

Every session has its own options; nothing of ONNX Runtime's process-wide state is touched.
Output buffers are kept and reused wherever the inputs settle the output's shape; only an output
whose size depends on values is allocated by ONNX Runtime.

A graph holds every operator of ours as an ONNX function. Where the library of CPU kernels is built
it is registered with every session, and ONNX Runtime then runs the kernel in the function's place.
The log says once which of the two it is. Weights that only such a kernel reads are loaded by this
package, see ``resident_weights``.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from visionllm_edge.runtime.backends.base import (
    PAST_PREFIX,
    PRESENT_PREFIX,
    KVCache,
    StageOptions,
)
from visionllm_edge.runtime.backends.cache_shape import cache_ports, cache_shape, present_of
from visionllm_edge.runtime.backends.onnxruntime_options import session_options
from visionllm_edge.runtime.backends.resident_weights import load_resident, resident_tensors
from visionllm_edge.runtime.errors import BackendError
from visionllm_edge.runtime.ports import (
    Array,
    Port,
    StagePorts,
    Tensor,
    bind_inputs,
    resolve_shape,
)

__all__ = ["CacheBuffers", "OnnxRuntimeBackend", "OnnxRuntimeStage"]

_ORT_TYPES = {
    "float32": "tensor(float)",
    "float16": "tensor(float16)",
    "bfloat16": "tensor(bfloat16)",
    "int64": "tensor(int64)",
    "int32": "tensor(int32)",
    "int8": "tensor(int8)",
    "uint8": "tensor(uint8)",
    "bool": "tensor(bool)",
}
# What ONNX Runtime 1.32 makes slower: its sum and norm in one node take 11.7 ms for 18,071 rows of
# 256 floats where the two nodes take 2.8 together. Names that a version lacks are passed over.
_SLOWER = ("SkipLayerNormFusion",)
# One cache line: rows of a buffer that starts off it are split over two lines in every load.
_ALIGNMENT_BYTES = 64
# Inputs of a decode step are some kilobytes; copying those of a prefill costs more than binding.
_STAGED_BYTES = 2**20


class OnnxRuntimeBackend:
    """Loads stages as ONNX Runtime sessions with the CPU provider."""

    name = "onnxruntime"

    def load_stage(self, path: Path, ports: StagePorts, options: StageOptions) -> OnnxRuntimeStage:
        """Load a graph; see :meth:`visionllm_edge.runtime.backends.base.Backend.load_stage`."""
        weights: dict[str, ort.OrtValue] = {}
        try:
            to_session, kernels = session_options(options)
            if kernels:
                arrays = load_resident(path.parent, resident_tensors(path))
                weights = {name: ort.OrtValue.ortvalue_from_numpy(a) for name, a in arrays.items()}
            for name, value in weights.items():
                to_session.add_initializer(name, value)
            if any(port.name.startswith(PAST_PREFIX) for port in ports.inputs):
                # Its rows differ from run to run. A plan per length takes a block for each: 73 MB
                # more for a prompt of 512 at TinyLlama's shape, and no time less.
                to_session.enable_mem_pattern = False
            session = ort.InferenceSession(
                str(path),
                to_session,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=list(_SLOWER),
            )
        except BackendError:
            raise
        # ONNX Runtime's exceptions share no base class but Exception.
        except Exception as e:
            raise BackendError(
                f"stage {ports.stage!r}: ONNX Runtime {ort.__version__} cannot load "
                f"{path.name!r}: {e}"
            ) from e
        return OnnxRuntimeStage(session, ports, weights)


class CacheBuffers:
    """Key/value buffers in host memory, one per ``past_key_values.*`` input of a stage."""

    def __init__(self, ports: StagePorts, capacity: int, known: Mapping[str, int]) -> None:
        """Allocate; ``known`` are the symbols that the graph settles."""
        past = cache_ports(ports)
        self._capacity = capacity
        self._arrays = {
            port.name: _aligned_zeros(cache_shape(ports.stage, port, capacity, known), port.dtype)
            for port in past
        }

    @property
    def capacity(self) -> int:
        """Rows (positions) that fit."""
        return self._capacity

    @property
    def nbytes(self) -> int:
        """Memory of all buffers."""
        return sum(array.nbytes for array in self._arrays.values())

    @property
    def arrays(self) -> Mapping[str, Array]:
        """The live buffers by input name."""
        return self._arrays

    def array(self, name: str) -> Array:
        """The live buffer behind an input such as ``past_key_values.0.key``."""
        return self._arrays[name]


@dataclass(frozen=True)
class _BoundStep:
    """Arrays that a binding holds: ours for the inputs, and the buffers of all outputs."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]

    def fill(self, inputs: Mapping[str, Tensor]) -> bool:
        """Copy inputs of the same names, types and shapes; False if any differs."""
        if inputs.keys() != self.inputs.keys():
            return False
        for name, array in self.inputs.items():
            given = inputs[name]
            if (
                not isinstance(given, np.ndarray)
                or given.shape != array.shape
                or given.dtype != array.dtype
            ):
                return False
        for name, array in self.inputs.items():
            array[...] = inputs[name]
        return True


@dataclass
class _BoundCache:
    """A binding that holds a cache.

    Attributes:
        binding: ONNX Runtime's.
        presents: names of the outputs that are in the cache.
        symbols: what the cache settles.
        step: the last run, if the next one of the same shapes can take its arrays again.
    """

    binding: ort.IOBinding
    presents: list[str]
    symbols: Mapping[str, int]
    step: _BoundStep | None = None


class OnnxRuntimeStage:
    """One session with its ports; implements ``StageRunner``."""

    def __init__(
        self,
        session: ort.InferenceSession,
        ports: StagePorts,
        weights: Mapping[str, ort.OrtValue] | None = None,
    ) -> None:
        """Check the session's ends against the ports; ``weights`` are those that it borrows."""
        self._session = session
        self._ports = ports
        self._weights = dict(weights or {})
        self._symbols: dict[str, int] = {}
        _match_ends(ports.stage, "input", ports.inputs, session.get_inputs(), self._symbols)
        _match_ends(ports.stage, "output", ports.outputs, session.get_outputs(), self._symbols)
        self._cache_inputs = {p.name for p in ports.inputs if p.name.startswith(PAST_PREFIX)}
        self._free_inputs = [p for p in ports.inputs if p.name not in self._cache_inputs]
        self._free_outputs = [p for p in ports.outputs if not _is_present(p.name)]
        self._buffers: dict[str, Array] = {}
        self._bindings: weakref.WeakKeyDictionary[CacheBuffers, _BoundCache] = (
            weakref.WeakKeyDictionary()
        )

    @property
    def ports(self) -> StagePorts:
        """The stage's named ends."""
        return self._ports

    def end_profiling(self) -> Path:
        """Stop the profiler of a stage that was loaded with `StageOptions.profile`: its file."""
        return Path(self._session.end_profiling())

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Array]:
        """Run once; the arrays returned are overwritten by the next run."""
        symbols = bind_inputs(self._ports.stage, self._ports.inputs, inputs, self._symbols)
        binding = self._session.io_binding()
        return self._run(binding, [], self._ports.inputs, self._ports.outputs, inputs, symbols)

    def run_kept(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once; the buffers of this run are handed over, the next run makes new ones."""
        outputs = self.run(inputs)
        self._buffers.clear()
        return {**outputs}

    def new_cache(self, capacity: int) -> CacheBuffers:
        """Zeroed key/value buffers for this stage."""
        return CacheBuffers(self._ports, capacity, self._symbols)

    def run_with_cache(self, inputs: Mapping[str, Tensor], cache: KVCache) -> dict[str, Array]:
        """Run once and update the cache in place."""
        if not isinstance(cache, CacheBuffers) or set(cache.arrays) != self._cache_inputs:
            raise BackendError(
                f"stage {self._ports.stage!r}: the cache was not made by new_cache() of this stage"
            )
        given = self._cache_inputs & inputs.keys()
        if given:
            raise BackendError(
                f"stage {self._ports.stage!r}: inputs {sorted(given)} are part of the cache; "
                "leave them out, or call run()"
            )
        # The cache is checked and bound once; a step checks what is new in it.
        bound = self._bindings.get(cache)
        if bound is None:
            bound = self._bindings[cache] = self._bind_cache(cache)
        if bound.step is not None and bound.step.fill(inputs):
            self._call(bound.binding)
            return dict(bound.step.outputs)
        bound.step = None
        symbols = bind_inputs(self._ports.stage, self._free_inputs, inputs, bound.symbols)
        arrays = {name: np.asarray(array) for name, array in inputs.items()}
        staged = sum(array.nbytes for array in arrays.values()) <= _STAGED_BYTES
        if staged:
            arrays = {name: array.copy() for name, array in arrays.items()}
        outputs = self._run(
            bound.binding, bound.presents, self._free_inputs, self._free_outputs, arrays, symbols
        )
        settled = all(resolve_shape(port, symbols) is not None for port in self._free_outputs)
        if staged and settled:
            bound.step = _BoundStep(arrays, outputs)
        return dict(outputs)

    def _bind_cache(self, cache: CacheBuffers) -> _BoundCache:
        past = cache_ports(self._ports)
        symbols = bind_inputs(self._ports.stage, past, cache.arrays, self._symbols)
        binding = self._session.io_binding()
        for name, array in cache.arrays.items():
            value = ort.OrtValue.ortvalue_from_numpy(array)
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(present_of(name), value)
        return _BoundCache(binding, [present_of(name) for name in cache.arrays], symbols)

    def _run(
        self,
        binding: ort.IOBinding,
        bound: list[str],
        input_ports: Sequence[Port],
        output_ports: Sequence[Port],
        inputs: Mapping[str, Tensor],
        symbols: Mapping[str, int],
    ) -> dict[str, Array]:
        """Bind what is not bound yet and run; ``bound`` are the outputs that are."""
        given = {port.name: np.ascontiguousarray(inputs[port.name]) for port in input_ports}
        for name, array in given.items():
            binding.bind_cpu_input(name, array)
        outputs: dict[str, Array] = {}
        for port in output_ports:
            shape = resolve_shape(port, symbols)
            if shape is None:
                binding.bind_output(port.name, "cpu")
                continue
            array = self._buffer(port, shape, list(given.values()))
            binding.bind_output(port.name, "cpu", 0, array.dtype, shape, array.ctypes.data)
            outputs[port.name] = array
        self._call(binding)
        if len(outputs) < len(output_ports):
            # A binding lists its outputs in the order in which their names were first bound.
            order = [*bound, *(port.name for port in output_ports)]
            values = dict(zip(order, binding.get_outputs(), strict=True))
            for port in output_ports:
                if port.name not in outputs:
                    outputs[port.name] = values[port.name].numpy()
        return outputs

    def _call(self, binding: ort.IOBinding) -> None:
        try:
            self._session.run_with_iobinding(binding)
        except Exception as e:
            raise BackendError(f"stage {self._ports.stage!r}: ONNX Runtime failed: {e}") from e

    def _buffer(self, port: Port, shape: tuple[int, ...], inputs: Sequence[Array]) -> Array:
        """A view of the output's buffer; a new one where it is too small or serves as an input."""
        size = math.prod(shape)
        kept = self._buffers.get(port.name)
        if kept is None or kept.size < size or any(np.may_share_memory(kept, x) for x in inputs):
            kept = self._buffers[port.name] = _aligned_zeros((size,), port.dtype)
        return kept[:size].reshape(shape)


def _match_ends(
    stage: str,
    kind: str,
    ports: Sequence[Port],
    ends: Sequence[ort.NodeArg],
    symbols: dict[str, int],
) -> None:
    """Compare ports with the graph's ends; what the graph fixes is added to ``symbols``."""
    by_name = {end.name: end for end in ends}
    if sorted(by_name) != sorted(port.name for port in ports):
        raise BackendError(
            f"stage {stage!r}: the manifest names {kind}s {[port.name for port in ports]}, "
            f"the graph has {list(by_name)}. Compile the bundle again."
        )
    for port in ports:
        end = by_name[port.name]
        same = end.type == _ORT_TYPES[port.dtype] and len(end.shape) == len(port.shape)
        if same:
            same = all(
                _same_axis(axis, got, symbols)
                for axis, got in zip(port.shape, end.shape, strict=True)
            )
        if not same:
            raise BackendError(
                f"stage {stage!r}: the manifest says {kind} {port}, "
                f"the graph has {end.shape} {end.type}. Compile the bundle again."
            )


def _same_axis(axis: int | str, got: int | str | None, symbols: dict[str, int]) -> bool:
    if not isinstance(got, int):
        return True
    if isinstance(axis, str):
        return symbols.setdefault(axis, got) == got
    return axis == got


def _aligned_zeros(shape: tuple[int, ...], dtype: str) -> Array:
    """Zeros on a cache line of their own; pages stay untouched until they are written."""
    size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(size_bytes + _ALIGNMENT_BYTES, dtype=np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT_BYTES
    return raw[start : start + size_bytes].view(dtype).reshape(shape)


def _is_present(name: str) -> bool:
    return name.startswith(PRESENT_PREFIX)
