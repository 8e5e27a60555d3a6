"""The few CUDA driver calls a plugin needs, behind an interface that tests replace.

Everything that may allocate or load happens in `Kernels.prepare`, before a stream is captured;
`Driver.launch` is one `cuLaunchKernel`. cuda-bindings is imported when the first kernel is loaded,
so a machine without a GPU can parse and build.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol

from visionllm_edge.plugins.cuda.launch import KernelLaunch

__all__ = ["CudaDriver", "Driver", "Kernels"]


class Driver(Protocol):
    """What a plugin asks of CUDA. Handles are opaque."""

    def context(self) -> int:
        """Handle of the calling thread's current context."""
        ...

    def load(self, image: bytes) -> object:
        """Load a cubin or PTX into the current context."""
        ...

    def function(self, module: object, name: str) -> object:
        """An entry point of a loaded image."""
        ...

    def launch(
        self, function: object, launch: KernelLaunch, pointers: Sequence[int], stream: int
    ) -> None:
        """Queue one kernel: pointers first, then the launch's scalars as C ints."""
        ...


class CudaDriver:
    """The driver API by cuda-bindings (12.x or 13.x)."""

    def __init__(self) -> None:
        """Import the bindings.

        Raises:
            RuntimeError: cuda-bindings is missing.
        """
        try:
            from cuda.bindings import driver
        except ImportError as e:
            raise RuntimeError(
                "the TensorRT plugins launch kernels through 'cuda.bindings', which is not "
                "installed. Install it: pip install 'visionllm-edge[cuda]'"
            ) from e
        self._cuda: ModuleType = driver

    def context(self) -> int:
        """Handle of the current context."""
        return int(self._call("cuCtxGetCurrent"))

    def load(self, image: bytes) -> object:
        """Load an image; the driver copies it."""
        return self._call("cuModuleLoadData", image)

    def function(self, module: object, name: str) -> object:
        """An entry point; also makes a lazily loading driver load it now."""
        return self._call("cuModuleGetFunction", module, name.encode())

    def launch(
        self, function: object, launch: KernelLaunch, pointers: Sequence[int], stream: int
    ) -> None:
        """Queue one kernel; no other call is made."""
        values = (*pointers, *launch.scalars)
        types = (ctypes.c_void_p,) * len(pointers) + (ctypes.c_int,) * len(launch.scalars)
        self._call(
            "cuLaunchKernel",
            function,
            *launch.grid,
            *launch.block,
            launch.shared_bytes,
            stream,
            (values, types),
            0,
        )

    def _call(self, name: str, *arguments: object) -> Any:
        status, *results = getattr(self._cuda, name)(*arguments)
        if int(status) != 0:
            _, text = self._cuda.cuGetErrorString(status)
            said = text.decode() if isinstance(text, bytes) else "unknown error"
            raise RuntimeError(
                f"{name} failed with CUDA status {int(status)} ({said}). "
                "Check that the kernels were compiled for this GPU."
            )
        return results[0] if results else None


class Kernels:
    """Kernel images by operator, and what of them is loaded in which context.

    Args:
        images: operator name -> cubin or PTX for the device of this process; None where an
            operator is only built into engines here, never run.
        driver: replaces CUDA; the default is opened when the first kernel is needed.
    """

    def __init__(self, images: Mapping[str, bytes | None], *, driver: Driver | None = None) -> None:
        """Keep the images; nothing is loaded."""
        self._images = dict(images)
        self._driver = driver
        self._modules: dict[tuple[int, str], object] = {}
        self._functions: dict[tuple[int, str, str], object] = {}

    def update(self, images: Mapping[str, bytes | None], *, driver: Driver | None = None) -> None:
        """Replace images (None keeps the one there is), and the driver if one is given."""
        changed = {name: image for name, image in images.items() if image is not None}
        self._images.update(changed)
        self._driver = driver or self._driver
        self._modules = {k: v for k, v in self._modules.items() if k[1] not in changed}
        self._functions = {k: v for k, v in self._functions.items() if k[1] not in changed}

    @property
    def driver(self) -> Driver:
        """The driver, opened on first use."""
        if self._driver is None:
            self._driver = CudaDriver()
        return self._driver

    def prepare(self, op: str, name: str) -> object:
        """The function of an entry point in the current context; loads the image if needed.

        Raises:
            RuntimeError: no image for the operator, or the driver refuses it.
        """
        image = self._images.get(op)
        if image is None:
            raise RuntimeError(
                f"{op}: no kernel image is registered in this process. Pass the cubin for this "
                "GPU: register(trt, kernels={...})."
            )
        context = self.driver.context()
        key = (context, op, name)
        if key not in self._functions:
            if (context, op) not in self._modules:
                self._modules[context, op] = self.driver.load(image)
            self._functions[key] = self.driver.function(self._modules[context, op], name)
        return self._functions[key]
