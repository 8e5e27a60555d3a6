"""What an engine says about itself: its ends against a stage's ports, profiles, aliases.

``engine`` is an ``ICudaEngine`` and ``trt`` the module, of TensorRT 10.3 to 11.x or TensorRT-RTX;
only calls that all of them have are made, what came later is probed with ``hasattr``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from visionllm_edge.runtime.errors import BackendError
from visionllm_edge.runtime.ports import Port, StagePorts, shape_text

__all__ = ["EngineEnds", "Profile", "choose_profile", "read_engine"]

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
_DYNAMIC = -1


@dataclass(frozen=True)
class Profile:
    """One optimisation profile.

    Attributes:
        index: its number in the engine.
        ranges: smallest and largest shape of every input that has an open axis.
    """

    index: int
    ranges: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def holds(self, shapes: Mapping[str, Sequence[int]]) -> bool:
        """Whether every given shape is inside."""
        return all(
            low <= length <= high
            for name, (smallest, largest) in self.ranges.items()
            if name in shapes
            for low, length, high in zip(smallest, shapes[name], largest, strict=True)
        )

    @property
    def size(self) -> int:
        """Elements of all inputs at their largest: how much the profile was built for."""
        return sum(math.prod(largest) for _, largest in self.ranges.values())


@dataclass(frozen=True)
class EngineEnds:
    """What a runner needs to know of an engine.

    Attributes:
        symbols: what the engine settles: symbol of a port -> number.
        profiles: at least one.
        on_host: inputs and outputs whose values the engine wants in host memory.
        aliases: output -> the input whose memory it shares.
    """

    symbols: Mapping[str, int]
    profiles: tuple[Profile, ...]
    on_host: frozenset[str]
    aliases: Mapping[str, str]


def read_engine(trt: Any, engine: Any, ports: StagePorts) -> EngineEnds:
    """Compare an engine's ends with a stage's ports, and read its profiles.

    Raises:
        BackendError: other names, types, shapes or memory layouts than the manifest says.
    """
    modes: dict[str, list[str]] = {"INPUT": [], "OUTPUT": []}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        modes[engine.get_tensor_mode(name).name].append(name)
    symbols: dict[str, int] = {}
    for kind, side in (("INPUT", ports.inputs), ("OUTPUT", ports.outputs)):
        _match_names(ports.stage, kind.lower(), side, modes[kind])
        for port in side:
            _match_tensor(trt, engine, ports.stage, kind.lower(), port, symbols)
    everything = modes["INPUT"] + modes["OUTPUT"]
    return EngineEnds(
        symbols=symbols,
        profiles=_profiles(engine, modes["INPUT"]),
        on_host=frozenset(
            name
            for name in everything
            if engine.get_tensor_location(name) == trt.TensorLocation.HOST
        ),
        aliases=_aliases(engine, modes["OUTPUT"]),
    )


def choose_profile(
    ports: StagePorts, profiles: Sequence[Profile], shapes: Mapping[str, Sequence[int]]
) -> Profile:
    """The profile built for the least of those that hold the shapes: decode before prefill.

    Raises:
        BackendError: no profile holds them; names the first input that is out of range.
    """
    fitting = [profile for profile in profiles if profile.holds(shapes)]
    if fitting:
        return min(fitting, key=lambda profile: profile.size)
    for name, shape in shapes.items():
        ranges = [profile.ranges[name] for profile in profiles if name in profile.ranges]
        alone = [Profile(0, {name: limits}) for limits in ranges]
        if ranges and not any(profile.holds({name: shape}) for profile in alone):
            allowed = " or ".join(f"{shape_text(low)}..{shape_text(high)}" for low, high in ranges)
            raise BackendError(
                f"stage {ports.stage!r}: input {name!r} expected a shape in {allowed}, the "
                f"profiles of this engine, got {shape_text(shape)}. Ask for less at once, or "
                "build the engine with a wider profile."
            )
    raise BackendError(
        f"stage {ports.stage!r}: no profile of this engine holds the shapes "
        f"{ {name: list(shape) for name, shape in shapes.items()} } together. "
        "Build the engine with a profile for this use."
    )


def _match_names(stage: str, kind: str, side: Sequence[Port], names: Sequence[str]) -> None:
    if sorted(names) != sorted(port.name for port in side):
        raise BackendError(
            f"stage {stage!r}: the manifest names {kind}s {[port.name for port in side]}, "
            f"the engine has {list(names)}. Build the bundle again."
        )


def _match_tensor(
    trt: Any, engine: Any, stage: str, kind: str, port: Port, symbols: dict[str, int]
) -> None:
    shape = tuple(engine.get_tensor_shape(port.name))
    member = engine.get_tensor_dtype(port.name).name
    same = _DTYPES.get(member) == port.dtype and len(shape) == len(port.shape)
    if same:
        same = all(
            _same_axis(axis, got, symbols) for axis, got in zip(port.shape, shape, strict=True)
        )
    if not same:
        raise BackendError(
            f"stage {stage!r}: the manifest says {kind} {port}, the engine has "
            f"{shape_text(shape)} {_DTYPES.get(member, member)}. Build the bundle again."
        )
    layout = engine.get_tensor_format(port.name)
    if layout != trt.TensorFormat.LINEAR:
        raise BackendError(
            f"stage {stage!r}: {kind} {port.name!r} expected the layout LINEAR, the engine has "
            f"{layout.name}. Build the bundle again without input and output formats."
        )


def _same_axis(axis: int | str, got: int, symbols: dict[str, int]) -> bool:
    if got == _DYNAMIC:
        return True
    if isinstance(axis, str):
        return symbols.setdefault(axis, got) == got
    return axis == got


def _profiles(engine: Any, inputs: Sequence[str]) -> tuple[Profile, ...]:
    dynamic = [name for name in inputs if _DYNAMIC in tuple(engine.get_tensor_shape(name))]
    found = []
    for index in range(engine.num_optimization_profiles):
        ranges = {}
        for name in dynamic:
            smallest, _, largest = engine.get_tensor_profile_shape(name, index)
            ranges[name] = tuple(smallest), tuple(largest)
        found.append(Profile(index, ranges))
    return tuple(found)


def _aliases(engine: Any, outputs: Sequence[str]) -> dict[str, str]:
    # Since TensorRT 10.15; no older release has an operator that aliases.
    if not hasattr(engine, "get_aliased_input_tensor"):
        return {}
    named = {name: engine.get_aliased_input_tensor(name) for name in outputs}
    return {output: source for output, source in named.items() if source}
