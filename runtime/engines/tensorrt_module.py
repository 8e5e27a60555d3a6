"""The TensorRT package behind a backend's name, and what this release of it can do.

`tensorrt` and `tensorrt_rtx` share the calls that this code base uses; whatever only some releases
have is probed with `hasattr` here, once, and looked up in the capability record afterwards.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType

from visionllm_edge.runtime.errors import BackendError

__all__ = ["PACKAGES", "TensorRT", "link_rtx_library", "load", "probe", "rtx_link_state"]

PACKAGES: Mapping[str, str] = MappingProxyType(
    {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
)
"""Backend name, which is also the module's name, -> product."""

_RTX_LIBRARIES = "tensorrt_rtx_libs"
_RTX_NAME, _RTX_FILE = "libtensorrt_rtx.so", "libtensorrt_rtx.so.1"

# Capability -> where it shows: an attribute of the module, dots for members of a class.
_CAPABILITIES = MappingProxyType(
    {
        "plugin_v3": "IPluginCreatorV3One",
        "aliased_plugin": "IPluginV3OneBuildV2",
        "attention": "INetworkDefinition.add_attention",
        "kv_cache_update": "INetworkDefinition.add_kv_cache_update",
        "rotary_embedding": "INetworkDefinition.add_rotary_embedding",
        "add_plugin_v3": "INetworkDefinition.add_plugin_v3",
        "quick_plugins": "IPluginCreatorV3Quick",
        "ahead_of_time_plugins": "NetworkDefinitionCreationFlag.PREFER_AOT_PYTHON_PLUGINS",
        "compute_capabilities": "ComputeCapability",
        "editable_timing_cache": "BuilderFlag.EDITABLE_TIMING_CACHE",
        "hardware_compatibility": "HardwareCompatibilityLevel",
        "monitor_memory": "BuilderFlag.MONITOR_MEMORY",
        "precision_flags": "BuilderFlag.FP16",
        "plugin_override": "OnnxParserFlag.ENABLE_PLUGIN_OVERRIDE",
        "progress_monitor": "IProgressMonitor",
        "runtime_cache": "IRuntimeCache",
        "runtime_config": "IRuntimeConfig",
        "whole_graph_capture": "CudaGraphStrategy",
        "engine_validity": "EngineValidity",
    }
)


@dataclass(frozen=True)
class TensorRT:
    """A loaded package.

    Attributes:
        backend: `tensorrt` or `tensorrt_rtx`.
        module: the package.
        version: its version string.
        capabilities: name -> whether this release has it.
    """

    backend: str
    module: ModuleType
    version: str
    capabilities: Mapping[str, bool]

    @property
    def product(self) -> str:
        """Name and version for messages."""
        return f"{PACKAGES[self.backend]} {self.version}"


def load(backend: str) -> TensorRT:
    """Import the package of a backend.

    Raises:
        BackendError: no such backend, or the package is not installed or cannot be loaded.
    """
    if backend not in PACKAGES:
        raise BackendError(
            f"backend {backend!r}: expected one of {', '.join(PACKAGES)}, which build engines."
        )
    if backend == "tensorrt_rtx":
        link_rtx_library()
    try:
        module = importlib.import_module(backend)
    except (ImportError, OSError) as e:
        raise BackendError(
            f"backend {backend!r}: the Python package '{backend}' cannot be imported ({e}). "
            + (
                "Install it: pip install 'visionllm-edge[rtx]'"
                if backend == "tensorrt_rtx"
                else "It comes with JetPack, or with TensorRT's own installation; on a Jetson "
                "make the virtual environment with --system-site-packages. To try a kit elsewhere: "
                "--with tensorrt_rtx"
            )
        ) from e
    return TensorRT(backend, module, str(module.__version__), probe(module))


def probe(module: object) -> Mapping[str, bool]:
    """The capability record of a TensorRT module."""
    return MappingProxyType({name: _has(module, path) for name, path in _CAPABILITIES.items()})


def _has(owner: object, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(owner, name):
            return False
        owner = getattr(owner, name)
    return True


def link_rtx_library() -> Path | None:
    """Give TensorRT-RTX's library the name under which its own parser looks for it.

    As soon as a graph holds a plugin, the parser of the 1.7 wheel opens `libtensorrt_rtx.so`; the
    wheel ships `libtensorrt_rtx.so.1` only, and the process dies without a Python error. A link
    beside it is enough, since the parser library searches its own folder.

    Returns:
        The link if it was made now; None where it is not needed or the folder is read-only. The
        build of a graph with plugins then fails in its own process.
    """
    folder = _rtx_folder()
    if folder is None or not _link_is_missing(folder):
        return None
    with contextlib.suppress(OSError):
        (folder / _RTX_NAME).symlink_to(_RTX_FILE)
        return folder / _RTX_NAME
    return None


def rtx_link_state() -> str:
    """In words, for `doctor`."""
    folder = _rtx_folder()
    if folder is None or not (folder / _RTX_FILE).exists():
        return "not needed"
    return "made at the first build" if _link_is_missing(folder) else "there"


def _rtx_folder() -> Path | None:
    spec = importlib.util.find_spec(_RTX_LIBRARIES)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _link_is_missing(folder: Path) -> bool:
    return not (folder / _RTX_NAME).exists() and (folder / _RTX_FILE).exists()
