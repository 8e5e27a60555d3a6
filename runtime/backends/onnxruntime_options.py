"""Options of an ONNX Runtime session, and the library of CPU kernels registered with it.

The log says once per process whether operators run as kernels or as the functions in the graph.
"""

from __future__ import annotations

import functools
import logging

import onnxruntime as ort

from visionllm_edge.plugins.cpu.library import SWITCH, find_library, instruction_set
from visionllm_edge.runtime.backends.base import StageOptions
from visionllm_edge.runtime.errors import BackendError

__all__ = ["register_kernels", "say_once", "session_options"]

_log = logging.getLogger(__name__)
_SILENT = 4


def session_options(options: StageOptions) -> tuple[ort.SessionOptions, bool]:
    """The options, and whether the CPU kernels are registered."""
    out = ort.SessionOptions()
    out.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    out.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    out.inter_op_num_threads = 1
    out.intra_op_num_threads = options.threads or 0
    # Idle threads of one stage would otherwise spin while the next stage needs their cores.
    out.add_session_config_entry("session.force_spinning_stop", "1")
    # Whatever goes wrong also arrives as an exception, which says it once and names the stage.
    out.log_severity_level = _SILENT
    if options.profile is not None:
        out.enable_profiling = True
        out.profile_file_prefix = options.profile
    for library in options.custom_op_libraries:
        out.register_custom_ops_library(str(library))
    if options.cpu_kernels:
        return out, register_kernels(out)
    say_once(logging.INFO, "operators run as ONNX functions: kernels are off for this stage")
    return out, False


def register_kernels(options: ort.SessionOptions) -> bool:
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
        say_once(logging.INFO, f"operators run as ONNX functions: {why}")
        return False
    try:
        isa = instruction_set(library)
        if isa:
            options.register_custom_ops_library(str(library))
    # OSError: built for another system. The rest is ONNX Runtime's, without a common base class.
    except Exception as e:
        text = f"operators run as ONNX functions: {library.name} cannot be used: {e}"
        say_once(logging.WARNING, text)
        return False
    if not isa:
        raise BackendError(
            "VISIONLLM_EDGE_CPU_ISA: expected avx512bf16, avx512vnni, avx512, avx2 or portable, as "
            "far as this processor has them. Unset it to use the widest."
        )
    say_once(logging.INFO, f"operators run as CPU kernels ({isa})")
    return True


@functools.cache
def say_once(level: int, text: str) -> None:
    """One line per process and form, not one per stage."""
    _log.log(level, "ONNX Runtime %s: %s", ort.__version__, text)
