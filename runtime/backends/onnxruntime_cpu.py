"""ONNX Runtime on the CPU: one session per stage, bound buffers, a cache updated in place.

Every session has its own options; nothing of ONNX Runtime's process-wide state is touched.
Output buffers are kept and reused wherever the inputs settle the output's shape; only an output
whose size depends on values is allocated by ONNX Runtime.

A graph holds every operator of ours as an ONNX function. Where the library of CPU kernels is built
it is registered with every session, and ONNX Runtime then runs the kernel in the function's place.
The log says once which of the two it is.
"""

from __future__ import annotations

import functools
import logging
import math
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from visionllm_edge.plugins.cpu.library import SWITCH, find_library, instruction_set
from visionllm_edge.runtime.backends.base import (
    PAST_PREFIX,
    PRESENT_PREFIX,
    KVCache,
    StageOptions,
)
from visionllm_edge.runtime.backends.cache_shape import cache_ports, cache_shape, present_of
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

_log = logging.getLogger(__name__)

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
# One cache line: rows of a buffer that starts off it are split over two lines in every load.
_ALIGNMENT_BYTES = 64
_SILENT = 4


class OnnxRuntimeBackend:
    """Loads stages as ONNX Runtime sessions with the CPU provider."""

    name = "onnxruntime"

    def load_stage(self, path: Path, ports: StagePorts, options: StageOptions) -> OnnxRuntimeStage:
        """Load a graph; see :meth:`visionllm_edge.runtime.backends.base.Backend.load_stage`."""
        try:
            session = ort.InferenceSession(
                str(path), _session_options(options), providers=["CPUExecutionProvider"]
            )
        except BackendError:
            raise
        # ONNX Runtime's exceptions share no base class but Exception.
        except Exception as e:
            raise BackendError(
                f"stage {ports.stage!r}: ONNX Runtime {ort.__version__} cannot load "
                f"{path.name!r}: {e}"
            ) from e
        return OnnxRuntimeStage(session, ports)


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
class _BoundCache:
    """A binding that holds a cache: the outputs in it, and the symbols that the cache settles."""

    binding: ort.IOBinding
    presents: list[str]
    symbols: Mapping[str, int]


class OnnxRuntimeStage:
    """One session with its ports; implements ``StageRunner``."""

    def __init__(self, session: ort.InferenceSession, ports: StagePorts) -> None:
        """Check the session's ends against the ports."""
        self._session = session
        self._ports = ports
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
        symbols = bind_inputs(self._ports.stage, self._free_inputs, inputs, bound.symbols)
        return self._run(
            bound.binding, bound.presents, self._free_inputs, self._free_outputs, inputs, symbols
        )

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
        try:
            self._session.run_with_iobinding(binding)
        except Exception as e:
            raise BackendError(f"stage {self._ports.stage!r}: ONNX Runtime failed: {e}") from e
        if len(outputs) < len(output_ports):
            # A binding lists its outputs in the order in which their names were first bound.
            order = [*bound, *(port.name for port in output_ports)]
            values = dict(zip(order, binding.get_outputs(), strict=True))
            for port in output_ports:
                if port.name not in outputs:
                    outputs[port.name] = values[port.name].numpy()
        return outputs

    def _buffer(self, port: Port, shape: tuple[int, ...], inputs: Sequence[Array]) -> Array:
        """A view of the output's buffer; a new one where it is too small or serves as an input."""
        size = math.prod(shape)
        kept = self._buffers.get(port.name)
        if kept is None or kept.size < size or any(np.may_share_memory(kept, x) for x in inputs):
            kept = self._buffers[port.name] = _aligned_zeros((size,), port.dtype)
        return kept[:size].reshape(shape)


def _session_options(options: StageOptions) -> ort.SessionOptions:
    out = ort.SessionOptions()
    out.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    out.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    out.inter_op_num_threads = 1
    out.intra_op_num_threads = options.threads or 0
    # Idle threads of one stage would otherwise spin while the next stage needs their cores.
    out.add_session_config_entry("session.force_spinning_stop", "1")
    # Whatever goes wrong also arrives as an exception, which says it once and names the stage.
    out.log_severity_level = _SILENT
    for library in options.custom_op_libraries:
        out.register_custom_ops_library(str(library))
    if options.cpu_kernels:
        _register_kernels(out)
    else:
        _say_once(logging.INFO, "operators run as ONNX functions: kernels are off for this stage")
    return out


def _register_kernels(options: ort.SessionOptions) -> None:
    """Register the CPU kernels if they are built and can be used; the log says which form runs.

    Raises:
        BackendError: a switch in the environment has a value that means nothing.
    """
    try:
        library = find_library()
    except ValueError as e:
        raise BackendError(str(e)) from e
    if library is None:
        why = f"no library of CPU kernels is built, or {SWITCH}=0"
        _say_once(logging.INFO, f"operators run as ONNX functions: {why}")
        return
    try:
        isa = instruction_set(library)
        if isa:
            options.register_custom_ops_library(str(library))
    # OSError: built for another system. The rest is ONNX Runtime's, without a common base class.
    except Exception as e:
        text = f"operators run as ONNX functions: {library.name} cannot be used: {e}"
        _say_once(logging.WARNING, text)
        return
    if not isa:
        raise BackendError(
            "VISIONLLM_EDGE_CPU_ISA: expected avx512, avx2 or portable, as far as this processor "
            "has them. Unset it to use the widest."
        )
    _say_once(logging.INFO, f"operators run as CPU kernels ({isa})")


@functools.cache
def _say_once(level: int, text: str) -> None:
    """One line per process and form, not one per stage."""
    _log.log(level, "ONNX Runtime %s: %s", ort.__version__, text)


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
