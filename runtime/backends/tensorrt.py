"""TensorRT and TensorRT-RTX: engines of a bundle, loaded once, each with a CUDA stream of its own.

An engine is native code. It is loaded only if its bytes have the digest that the bundle's manifest
(or the caller who has just built it) gives; code that an engine may carry for the host stays
forbidden. A stage shares its stream and its memory with no other, so two stages may run from two
threads at a time; what one leaves on the device, the stream of the one that reads it waits for.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visionllm_edge.runtime.backends.base import StageOptions
from visionllm_edge.runtime.backends.tensorrt_engine import read_engine
from visionllm_edge.runtime.backends.tensorrt_stage import Messages, TensorRTStage
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.device.base import Device
from visionllm_edge.runtime.errors import BackendError
from visionllm_edge.runtime.ports import StagePorts

__all__ = ["TensorRTBackend", "enterprise", "rtx"]

_log = logging.getLogger(__name__)
_PLUGINS = "plugins/"
_LOGGED = {"INTERNAL_ERROR": logging.ERROR, "ERROR": logging.ERROR, "WARNING": logging.WARNING}


def enterprise() -> TensorRTBackend:
    """The backend ``tensorrt``."""
    return TensorRTBackend("tensorrt")


def rtx() -> TensorRTBackend:
    """The backend ``tensorrt_rtx``."""
    return TensorRTBackend("tensorrt_rtx")


@dataclass(frozen=True)
class _Library:
    """The loaded package with one device: what every stage of this backend shares."""

    product: str
    version: str
    trt: Any
    runtime: Any
    messages: Messages
    device: Device


class TensorRTBackend:
    """Loads engines; nothing of TensorRT or CUDA is touched before the first one.

    Args:
        name: ``tensorrt`` or ``tensorrt_rtx``.
        load_module: gives the TensorRT package by that name.
        open_device: gives the device that runs.
    """

    def __init__(
        self,
        name: str,
        *,
        load_module: Callable[[str], Any] | None = None,
        open_device: Callable[[], Device] | None = None,
    ) -> None:
        """Remember the name."""
        self._name = name
        self._load_module = load_module
        self._open_device = open_device
        self._opened: _Library | None = None
        # A library of plugins stays loaded as long as its handle.
        self._plugins: dict[Path, list[object]] = {}

    @property
    def name(self) -> str:
        """As in a bundle's target."""
        return self._name

    def load_stage(self, path: Path, ports: StagePorts, options: StageOptions) -> TensorRTStage:
        """Load an engine; see :meth:`visionllm_edge.runtime.backends.base.Backend.load_stage`."""
        plan = _verified_bytes(path, ports.stage, options)
        library = self._library()
        if options.bundle is not None:
            self._register_plugins(library, options.bundle)
        library.messages.clear()
        engine = library.runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BackendError(_cannot_load(self._name, library, ports.stage, path, options))
        ends = read_engine(library.trt, engine, ports)
        return TensorRTStage(
            library.trt,
            engine,
            ports,
            ends,
            device=library.device,
            stream=library.device.new_stream(),
            messages=library.messages,
            owner=library,
        )

    def _library(self) -> _Library:
        if self._opened is None:
            load = (
                self._load_module
                or importlib.import_module("visionllm_edge.runtime.engines.tensorrt_module").load
            )
            loaded = load(self._name)
            trt = loaded.module
            device = (self._open_device or _cuda_device)()
            messages = Messages()
            runtime = trt.Runtime(_logger(trt, messages))
            # An engine may embed libraries for the host; ours never need one.
            runtime.engine_host_code_allowed = False
            self._opened = _Library(
                product=loaded.product,
                version=loaded.version,
                trt=trt,
                runtime=runtime,
                messages=messages,
                device=device,
            )
            _log.debug("%s on %s", loaded.product, device.properties.name)
        return self._opened

    def _register_plugins(self, library: _Library, bundle: Bundle) -> None:
        """Make the bundle's plugins known before an engine asks for them; once per bundle."""
        if bundle.root in self._plugins:
            return
        handles: list[object] = []
        kernels: dict[str, dict[str, str]] = {}
        for relative in sorted(bundle.manifest.files):
            name = relative.removeprefix(_PLUGINS)
            if not relative.startswith(_PLUGINS):
                continue
            if name.endswith(".so"):
                _checked(bundle, relative)
                handles.append(_load_library(library, bundle.file(relative)))
            elif name.endswith(".cubin"):
                operator, _, architecture = name.removesuffix(".cubin").partition(".")
                kernels.setdefault(operator, {})[architecture.removeprefix("sm_")] = relative
        if kernels and not handles:
            images = {op: _image(library, bundle, op, files) for op, files in kernels.items()}
            glue = importlib.import_module("visionllm_edge.plugins.tensorrt_glue.python_plugin")
            try:
                glue.register(library.trt, kernels=images)
            except (RuntimeError, ValueError) as e:
                raise BackendError(f"bundle {bundle.root.name!r}: plugins: {e}") from e
        self._plugins[bundle.root] = handles


def _cuda_device() -> Device:
    from visionllm_edge.runtime.device.cuda import open_device

    return open_device()


def _logger(trt: Any, messages: Messages) -> Any:
    """TensorRT's log as ours; errors are also kept for the exception that follows."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            level = _LOGGED.get(severity.name, logging.DEBUG)
            if level >= logging.ERROR:
                # It arrives once more as an exception, which names the stage.
                messages.add(message.strip())
                level = logging.DEBUG
            _log.log(level, "%s", message.strip())

    return Logger()


def _verified_bytes(path: Path, stage: str, options: StageOptions) -> bytes:
    """The engine's bytes, if they are the ones that somebody vouches for.

    The very bytes that are hashed are handed to TensorRT: the file is read once.
    """
    expected = options.sha256
    if expected is None and options.bundle is not None:
        root = options.bundle.root
        relative = path.relative_to(root).as_posix() if path.is_relative_to(root) else ""
        entry = options.bundle.manifest.files.get(relative)
        expected = entry.sha256 if entry is not None else None
    if expected is None:
        raise BackendError(
            f"stage {stage!r}: engine {path.name!r} is native code, and expected to be listed in "
            "the manifest of an opened bundle; it is not. Load it as part of its bundle."
        )
    try:
        plan = path.read_bytes()
    except OSError as e:
        raise BackendError(
            f"stage {stage!r}: engine {path.name!r} cannot be read: {e}. Build the bundle again."
        ) from e
    _same_digest(plan, expected, f"stage {stage!r}: engine {path.name!r}")
    return plan


def _checked(bundle: Bundle, relative: str) -> bytes:
    content = bundle.file(relative).read_bytes()
    _same_digest(content, bundle.manifest.files[relative].sha256, f"plugin file {relative!r}")
    return content


def _same_digest(content: bytes, expected: str, what: str) -> None:
    if hashlib.sha256(content).hexdigest() != expected:
        raise BackendError(
            f"{what} is changed: its sha256 differs from the manifest, and native code that is "
            "not what was built is not loaded. Copy the bundle again or build it again."
        )


def _load_library(library: _Library, path: Path) -> object:
    registry = library.trt.get_plugin_registry()
    handle = registry.load_library(str(path))
    if handle is None:
        raise BackendError(
            f"plugin library {path.name!r}: {library.product} cannot load it"
            f"{_said(library.messages)}. Build it for this TensorRT with "
            "'visionllm-edge plugins build', and the bundle again."
        )
    return handle


def _image(library: _Library, bundle: Bundle, operator: str, files: dict[str, str]) -> bytes:
    """The operator's kernels for this device; a file without an architecture serves every one."""
    sm = str(library.device.properties.sm)
    relative = files.get(sm) or files.get("")
    if relative is None:
        raise BackendError(
            f"bundle {bundle.root.name!r}: operator {operator!r} has kernels for sm "
            f"{', '.join(sorted(files))}, this device is {library.device.properties.name} with "
            f"sm {sm}. Build the bundle for this device."
        )
    return _checked(bundle, relative)


def _said(messages: Messages) -> str:
    return f" ({messages})" if messages else ""


def _cannot_load(
    name: str, library: _Library, stage: str, path: Path, options: StageOptions
) -> str:
    built_with = "an unknown version"
    if options.bundle is not None:
        built_with = options.bundle.manifest.created_by.get(name, built_with)
    elif options.sha256 is not None:
        built_with = "the version of the build"
    properties = library.device.properties
    return (
        f"stage {stage!r}: {library.product} cannot load {path.name!r}{_said(library.messages)}. "
        f"The engine was built with {built_with}, the runtime is {library.version} on "
        f"{properties.name} (sm {properties.sm}). An engine runs on the TensorRT version and the "
        "kind of device that it was built for: build the bundle on this device, from its kit."
    )
