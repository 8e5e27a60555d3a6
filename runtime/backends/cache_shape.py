"""Key/value cache ports: their names, and their shape for a capacity."""

from __future__ import annotations

from collections.abc import Mapping

from visionllm_edge.runtime.backends.base import PAST_PREFIX, PRESENT_PREFIX
from visionllm_edge.runtime.errors import BackendError
from visionllm_edge.runtime.ports import Port, StagePorts, resolve_shape

__all__ = ["cache_ports", "cache_shape", "present_of"]

# Cache buffers are [..., rows, head size].
_ROWS_AXIS = -2


def present_of(past: str) -> str:
    """``past_key_values.0.key`` -> ``present.0.key``."""
    return PRESENT_PREFIX + past.removeprefix(PAST_PREFIX)


def cache_ports(ports: StagePorts) -> list[Port]:
    """The ``past_key_values.*`` inputs of a stage.

    Raises:
        BackendError: there are none, or one lacks its output.
    """
    past = [port for port in ports.inputs if port.name.startswith(PAST_PREFIX)]
    if not past:
        raise BackendError(f"stage {ports.stage!r} has no {PAST_PREFIX}* inputs, so no cache")
    outputs = {port.name for port in ports.outputs}
    for port in past:
        if present_of(port.name) not in outputs:
            raise BackendError(
                f"stage {ports.stage!r}: input {port.name!r} expected an output "
                f"{present_of(port.name)!r} to pair with, and the graph has none"
            )
    return past


def cache_shape(stage: str, port: Port, capacity: int, known: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of one buffer with room for ``capacity`` rows; ``known`` symbols are settled.

    Raises:
        BackendError: the graph fixes another capacity, or leaves more open than the capacity.
    """
    open_axes = {axis for axis in port.shape if isinstance(axis, str) and axis not in known}
    if len(open_axes) > 1:
        raise BackendError(
            f"stage {stage!r}: expected one open axis, the capacity, in {port}; "
            f"got {sorted(open_axes)}"
        )
    shape = resolve_shape(port, {**known, **dict.fromkeys(open_axes, capacity)})
    assert shape is not None
    if capacity < 1 or shape[_ROWS_AXIS] != capacity:
        raise BackendError(
            f"stage {stage!r}: cache {port} expected a capacity of {shape[_ROWS_AXIS]} rows, "
            f"got {capacity}"
        )
    return shape
