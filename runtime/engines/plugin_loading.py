"""Plugins of the build process: our Python classes, or shared libraries given by path."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path

from visionllm_edge.runtime.bundle import sha256_of_file
from visionllm_edge.runtime.engines.request import BuildRequest
from visionllm_edge.runtime.engines.tensorrt_module import TensorRT
from visionllm_edge.runtime.errors import PluginError

__all__ = ["load_plugins", "plugin_digests"]


def load_plugins(trt: TensorRT, request: BuildRequest) -> list[object]:
    """Register what the request asks for, before the parser sees the graph.

    Returns:
        Handles to keep until the engine is built.

    Raises:
        PluginError: this TensorRT takes no such plugin, or a library cannot be loaded.
    """
    if request.plugins == "none":
        return []
    if request.plugins == "library":
        return [_load_library(trt, Path(library)) for library in request.libraries]
    if not trt.capabilities["plugin_v3"]:
        raise PluginError(
            f"stage '{request.plan.name}': {trt.product} has no IPluginV3 creators; expected "
            "TensorRT 10.0 or later, or TensorRT-RTX. Make the kit with --no-plugins."
        )
    from visionllm_edge.plugins.tensorrt_glue.python_plugin import register

    kernels = {op: Path(path).read_bytes() for op, path in request.kernels.items()}
    wanted = {op: kernels.get(op) for op in request.plan.plugin_ops}
    try:
        register(trt.module, kernels=wanted)
    except (RuntimeError, ValueError) as e:
        raise PluginError(f"stage '{request.plan.name}': {e}") from e
    return []  # the registering module keeps its creators


def _load_library(trt: TensorRT, library: Path) -> object:
    if library.is_symlink() or not library.is_file():
        raise PluginError(
            f"plugin library '{library.name}': expected a file, found none. Give the path that "
            "`visionllm-edge plugins build` wrote."
        )
    try:
        handle: object = trt.module.get_plugin_registry().load_library(str(library))
    except RuntimeError as e:
        handle, reason = None, f" ({e})"
    else:
        reason = ""
    if handle is None:
        raise PluginError(
            f"plugin library '{library.name}': {trt.product} cannot load it{reason}. Build it "
            "against the headers of this TensorRT."
        )
    return handle


def plugin_digests(
    ops: Iterable[str], kernels: Mapping[str, Path], libraries: Iterable[Path]
) -> dict[str, str]:
    """Operator -> digest of what implements it: a changed plugin makes another engine.

    Args:
        ops: operators that become plugins.
        kernels: operator -> file with its compiled kernels.
        libraries: shared libraries that replace our Python classes.
    """
    given = [sha256_of_file(library) for library in libraries]
    shared = given or [sha256_of_file(path) for path in _sources("visionllm_edge.plugins")]
    out = {}
    for op in ops:
        own = [] if given or op not in kernels else [sha256_of_file(kernels[op])]
        out[op] = hashlib.sha256(" ".join([op, *shared, *own]).encode()).hexdigest()
    return out


def _sources(package: str) -> list[Path]:
    """Python files of the operators and of the glue, which decide an engine's shapes and types."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    folder = Path(next(iter(spec.submodule_search_locations)))
    return sorted(
        [*folder.glob("*.py"), *folder.glob("*/spec.py"), *folder.glob("tensorrt_*/*.py")]
    )
