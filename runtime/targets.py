"""The target table: a device family, the backend that runs there, and what it can compute. Data.

``visionllm-edge targets`` prints it. What a backend's release does with a graph stands in
``visionllm_edge.runtime.releases``; where a row is from stands in the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

from visionllm_edge.runtime.errors import ConfigError
from visionllm_edge.runtime.releases import Release, release_of

__all__ = ["PRECISIONS", "QUANTIZED", "TARGETS", "Target", "find_target"]

PRECISIONS = ("fp32", "fp16", "bf16")
"""What a graph can be lowered to."""

QUANTIZED = ("int8", "fp8")
"""What single stages can be quantised to, the rest of them in fp16, where the hardware has it."""


@dataclass(frozen=True)
class Target:
    """One row of the table.

    Attributes:
        name: as on the command line.
        device: what the family is, in words.
        backend: ``onnxruntime``, ``tensorrt`` or ``tensorrt_rtx``.
        tensorrt: release whose facts apply, empty for ONNX Runtime.
        sm: compute capabilities as one number (87 is 8.7), that engines are built for.
        precisions: what graphs can be lowered to here.
        precision: the one taken if none is asked for.
        hardware_types: element types that the hardware computes or stores weights in.
        memory: how much and of what kind, in words.
        system: system stack that brings the release, in words.
        proof: what is known to work: ``tests`` (run and compared in the tests), ``built`` (engines
            are built in the tests, never run) or ``not run``.
        source: where the row is from.
    """

    name: str
    device: str
    backend: str
    tensorrt: str
    sm: tuple[int, ...]
    precisions: tuple[str, ...]
    precision: str
    hardware_types: tuple[str, ...]
    memory: str
    system: str
    proof: str
    source: str

    @property
    def release(self) -> Release:
        """Facts about the backend's release."""
        return release_of(self.backend, self.tensorrt)

    @property
    def quantized(self) -> tuple[str, ...]:
        """Eight-bit precisions that a stage can be quantised to here."""
        return tuple(name for name in QUANTIZED if name in self.hardware_types)

    def resolve_precision(self, wanted: str | None) -> str:
        """The asked precision, or the default.

        Raises:
            ConfigError: the target cannot compute in it.
        """
        precision = wanted or self.precision
        if precision not in (*self.precisions, *self.quantized):
            lacks = precision in QUANTIZED and precision not in self.hardware_types
            reason = f" Its hardware ({self.device}) has no {precision}." if lacks else ""
            raise ConfigError(
                f"target '{self.name}': precision '{precision}' expected one of "
                f"{', '.join((*self.precisions, *self.quantized))}.{reason} Choose one of them, "
                "or another target."
            )
        return precision

    def to_dict(self) -> dict[str, object]:
        """Plain JSON types."""
        fields = asdict(self) | {"quantized": self.quantized}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}


_ALL = ("fp32", "fp16", "bf16")
_TURING = ("fp32", "fp16", "int8")
_ORIN = ("fp32", "fp16", "int8", "int4")
_AMPERE = ("fp32", "fp16", "bf16", "int8", "int4")
_HOPPER = (*_AMPERE, "fp8")
_BLACKWELL = (*_HOPPER, "fp4")
_RTX_SOURCE = (
    "docs.nvidia.com/deeplearning/tensorrt-rtx support-matrix-1/1.5; "
    "seen: compute capabilities and type errors of tensorrt-rtx 1.7.1"
)
_DATACENTRE_SOURCE = "docs.nvidia.com/deeplearning/tensorrt support-matrix"
_RTX_SYSTEM = "TensorRT-RTX wheels for x86-64, CUDA 12 or 13 driver"
_WHEELS = "TensorRT wheels or packages, CUDA 13 driver"


def _rtx(name: str, device: str, sm: int, types: tuple[str, ...]) -> Target:
    return Target(
        name=name,
        device=device,
        backend="tensorrt_rtx",
        tensorrt="1.7",
        sm=(sm,),
        precisions=tuple(p for p in _ALL if p in types),
        precision="fp16",
        hardware_types=types,
        memory="VRAM of the card",
        system=_RTX_SYSTEM,
        proof="built",
        source=_RTX_SOURCE,
    )


def _datacentre(name: str, device: str, sm: int, types: tuple[str, ...], memory: str) -> Target:
    return Target(
        name=name,
        device=device,
        backend="tensorrt",
        tensorrt="11.4",
        sm=(sm,),
        precisions=_ALL,
        precision="fp16",
        hardware_types=types,
        memory=memory,
        system=_WHEELS,
        proof="not run",
        source=_DATACENTRE_SOURCE,
    )


_ROWS = (
    Target(
        name="cpu",
        device="any x86-64 or Arm processor",
        backend="onnxruntime",
        tensorrt="",
        sm=(),
        precisions=("fp32",),
        precision="fp32",
        hardware_types=("fp32", "int8"),
        memory="main memory",
        system="ONNX Runtime wheel",
        proof="tests",
        source="seen: onnxruntime 1.32",
    ),
    _rtx("rtx-turing", "GeForce RTX 20, Quadro RTX, T4", 75, _TURING),
    _rtx("rtx-ampere", "GeForce RTX 30, RTX A series", 86, _AMPERE),
    _rtx("rtx-ada", "GeForce RTX 40, RTX Ada", 89, _HOPPER),
    _rtx("rtx-blackwell", "GeForce RTX 50, RTX PRO Blackwell", 120, _BLACKWELL),
    Target(
        name="dgx-spark",
        device="DGX Spark (GB10)",
        backend="tensorrt_rtx",
        tensorrt="1.7",
        sm=(121,),
        precisions=_ALL,
        precision="fp16",
        hardware_types=_BLACKWELL,
        memory="128 GB shared with the CPU",
        system="TensorRT-RTX wheel for aarch64 (experimental), CUDA 13",
        proof="built",
        source=_RTX_SOURCE,
    ),
    Target(
        name="jetson-orin-jp6",
        device="Jetson Orin Nano, NX, AGX on JetPack 6",
        backend="tensorrt",
        tensorrt="10.3",
        sm=(87,),
        # bf16 on compute capability 8.7 is nowhere confirmed.
        precisions=("fp32", "fp16"),
        precision="fp16",
        hardware_types=_ORIN,
        memory="4 to 64 GB shared with the CPU",
        system="JetPack 6.x: CUDA 12.6, TensorRT 10.3, Python 3.10",
        proof="not run",
        source="github.com/pytorch/TensorRT/pull/3453; TensorRT Edge-LLM support matrix",
    ),
    Target(
        name="jetson-orin-jp7",
        device="Jetson Orin Nano, NX, AGX on JetPack 7.2",
        backend="tensorrt",
        tensorrt="10.16",
        sm=(87,),
        precisions=("fp32", "fp16"),
        precision="fp16",
        hardware_types=_ORIN,
        memory="4 to 64 GB shared with the CPU",
        system="JetPack 7.2: CUDA 13.2, TensorRT 10.16, Python 3.12",
        proof="not run",
        source="github.com/OE4T/meta-tegra/pull/2224; TensorRT 10.16.1 release notes",
    ),
    Target(
        name="jetson-thor",
        device="Jetson Thor T5000, T4000 on JetPack 7.0 and 7.1",
        backend="tensorrt",
        tensorrt="10.13",
        sm=(110,),
        precisions=_ALL,
        precision="fp16",
        hardware_types=_BLACKWELL,
        memory="64 or 128 GB shared with the CPU",
        system="JetPack 7.0 or 7.1: CUDA 13.0, TensorRT 10.13, Python 3.12",
        proof="not run",
        source="developer.nvidia.com/embedded/jetpack downloads archive-7.1",
    ),
    Target(
        name="jetson-thor-jp72",
        device="Jetson Thor T5000, T4000 on JetPack 7.2",
        backend="tensorrt",
        tensorrt="10.16",
        sm=(110,),
        precisions=_ALL,
        precision="fp16",
        hardware_types=_BLACKWELL,
        memory="64 or 128 GB shared with the CPU",
        system="JetPack 7.2: CUDA 13.2, TensorRT 10.16, Python 3.12",
        proof="not run",
        source="github.com/OE4T/meta-tegra/pull/2224",
    ),
    _datacentre("a100", "A100, A30", 80, _AMPERE, "24 to 80 GB HBM"),
    _datacentre("h100", "H100, H200, GH200", 90, _HOPPER, "80 to 141 GB HBM"),
    _datacentre("b200", "B200, GB200", 100, _BLACKWELL, "about 190 GB HBM"),
)

TARGETS: Mapping[str, Target] = MappingProxyType({target.name: target for target in _ROWS})
"""name -> row, in the order of the table."""


def find_target(name: str) -> Target:
    """A row by name.

    Raises:
        ConfigError: no such target.
    """
    if name not in TARGETS:
        raise ConfigError(
            f"target '{name}': expected one of {', '.join(TARGETS)}. "
            "`visionllm-edge targets` describes them."
        )
    return TARGETS[name]
