"""Compiled kernels for the plugins of a kit, so that the device needs no CUDA compiler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from visionllm_edge.plugins.cuda.compile import SMS, compile_kernels
from visionllm_edge.runtime.errors import PluginError

__all__ = ["add_kernels", "compiled_for"]


def add_kernels(
    ops: Sequence[str], sms: Sequence[int], folder: Path, note: Callable[[str], None]
) -> dict[str, str]:
    """Compile the kernels of operators for compute capabilities and store them.

    Args:
        ops: operators that became plugins.
        sms: compute capabilities times ten.
        folder: the kit.
        note: gets a line per file.

    Returns:
        Path in the sealed bundle -> path in the kit.

    Raises:
        PluginError: no compiler here, or none of these kernels runs on that capability.
    """
    payload: dict[str, str] = {}
    for op in ops:
        for sm in sms:
            try:
                compiled = compile_kernels(op, compiled_for(sm))
            except (RuntimeError, ValueError) as e:
                raise PluginError(
                    f"kit: the kernels of '{op}' for compute capability {sm / 10} cannot be "
                    f"compiled: {e} Or make the kit with --no-plugins."
                ) from e
            relative = f"plugins/{op}.sm_{sm}.cubin"
            (folder / "plugins").mkdir(exist_ok=True)
            (folder / relative).write_bytes(compiled.cubin)
            payload[relative] = relative
            note(f"{op}: kernels for sm_{sm}, {len(compiled.cubin)} bytes, {compiled.compiler}")
    return payload


def compiled_for(sm: int) -> int:
    """The capability to compile for: a device also runs code of an older minor one (12.1, 12.0)."""
    older = [known for known in SMS if known // 10 == sm // 10 and known <= sm]
    return max(older, default=sm)
