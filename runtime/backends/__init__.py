"""Backends: what runs one lowered stage. Found by the name in a bundle's target."""

from __future__ import annotations

import importlib
from typing import cast

from visionllm_edge.runtime.backends.base import Backend, KVCache, StageOptions, StageRunner
from visionllm_edge.runtime.errors import BackendError

__all__ = ["BACKENDS", "Backend", "KVCache", "StageOptions", "StageRunner", "load_backend"]

# By dotted name, so that a backend's library is imported only where a bundle asks for it.
BACKENDS = {
    "onnxruntime": "visionllm_edge.runtime.backends.onnxruntime_cpu:OnnxRuntimeBackend",
    "tensorrt": "visionllm_edge.runtime.backends.tensorrt:enterprise",
    "tensorrt_rtx": "visionllm_edge.runtime.backends.tensorrt:rtx",
}


def load_backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        BackendError: no such backend, or its library is not installed.
    """
    if name not in BACKENDS:
        raise BackendError(
            f"backend {name!r} is unknown; expected one of {', '.join(sorted(BACKENDS))}. "
            "Compile the bundle for a target of this version."
        )
    module_name, factory = BACKENDS[name].split(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as e:
        raise BackendError(f"backend {name!r}: its library cannot be imported ({e})") from e
    return cast(Backend, getattr(module, factory)())
