"""Every operator with a CUDA kernel as an IPluginV3 written in Python.

One class for all operators: ports and type combinations come from `SemanticOp`, the launch from
the operator's `cuda.py`, the kernel from a compiled image. It works with `tensorrt` 10.0 to 11.x
and with `tensorrt_rtx`; parsing and building need neither a GPU nor an image.

The class of a plugin derives from classes of the TensorRT module, so it is made inside
`plugin_classes` from the module that the caller imported.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from visionllm_edge.plugins.cuda.launch import KernelLaunch
from visionllm_edge.plugins.registry import SEMANTIC_OPS
from visionllm_edge.plugins.semantic_op import PLUGIN_NAMESPACE, PLUGIN_VERSION, SemanticOp
from visionllm_edge.plugins.tensorrt_glue.driver import Driver, Kernels
from visionllm_edge.plugins.tensorrt_glue.shapes import (
    check_shapes,
    find_combination,
    output_axes,
    value_dtype,
)

__all__ = ["kernel_ops", "launch_of", "register", "trt_types"]

_LOG = logging.getLogger(__name__)
# What the kernel with 16-byte loads asks of the pointers to values.
_ALIGNMENT = 16
_TRT_NAMES = {
    "float32": "FLOAT",
    "float16": "HALF",
    "bfloat16": "BF16",
    "int32": "INT32",
    "int64": "INT64",
}
# TensorRT module -> what was registered with it; also keeps the creators alive.
_REGISTERED: dict[ModuleType, tuple[Kernels, dict[str, object]]] = {}


def kernel_ops() -> dict[str, SemanticOp]:
    """The operators that have a CUDA kernel, by name."""
    return {name: op for name, op in SEMANTIC_OPS.items() if _has_module(f"{op.module}.cuda")}


def launch_of(op: SemanticOp) -> Callable[..., KernelLaunch]:
    """The operator's `launch(shapes, dtype, aligned=...)`."""
    launch: Callable[..., KernelLaunch] = importlib.import_module(f"{op.module}.cuda").launch
    return launch


def trt_types(trt: Any) -> dict[str, Any]:
    """Element type by name -> `trt.DataType`."""
    return {name: getattr(trt.DataType, member) for name, member in _TRT_NAMES.items()}


def register(
    trt: ModuleType,
    *,
    kernels: Mapping[str, bytes | None] | None = None,
    driver: Driver | None = None,
) -> None:
    """Register a creator per operator with TensorRT's plugin registry.

    Calling it again replaces kernel images and keeps the creators.

    Args:
        trt: `tensorrt` or `tensorrt_rtx`, imported by the caller.
        kernels: operator name -> cubin for this process's GPU. Operators without one can be
            parsed and built, not run.
        driver: what launches; for tests.

    Raises:
        ValueError: a kernel for an operator that does not exist.
        RuntimeError: another creator of that name is registered (a plugin library, for example).
    """
    ops = kernel_ops()
    images = dict(kernels or {})
    if unknown := sorted(images.keys() - ops.keys()):
        raise ValueError(
            f"kernels: expected operators among {', '.join(sorted(ops))}, got {unknown}."
        )
    if trt in _REGISTERED:
        _REGISTERED[trt][0].update(images, driver=driver)
        return
    registry = trt.get_plugin_registry()
    store, creators = Kernels(images, driver=driver), dict[str, object]()
    for op in ops.values():
        creator = plugin_classes(trt, op, store)[1]()
        if not registry.register_creator(creator, PLUGIN_NAMESPACE):
            raise RuntimeError(
                f"{op.name}: TensorRT's registry refused the creator, most likely because a plugin "
                "library registered one of that name. Use the library or the Python plugin."
            )
        creators[op.name] = creator
    _REGISTERED[trt] = store, creators
    _LOG.debug("registered %s with %s", ", ".join(creators), trt.__name__)


def plugin_classes(
    trt: Any, op: SemanticOp, kernels: Kernels
) -> tuple[type[Any], Callable[[], Any]]:
    """The plugin class of an operator and a factory of its creator.

    Args:
        trt: the TensorRT module.
        op: the operator.
        kernels: where its functions come from.
    """
    types = trt_types(trt)
    names = {value: name for name, value in types.items()}
    axes = output_axes(op)
    launch = launch_of(op)

    def dtypes(values: Sequence[Any]) -> list[str]:
        return [names.get(value, str(value)) for value in values]

    # The types are ignored because the bases are only known at run time.
    class Plugin(
        trt.IPluginV3,  # type: ignore[misc]
        trt.IPluginV3OneCore,  # type: ignore[misc]
        trt.IPluginV3OneBuild,  # type: ignore[misc]
        trt.IPluginV3OneRuntime,  # type: ignore[misc]
    ):
        def __init__(self) -> None:
            # All four before the first attribute: the binding crashes otherwise.
            trt.IPluginV3.__init__(self)
            trt.IPluginV3OneCore.__init__(self)
            trt.IPluginV3OneBuild.__init__(self)
            trt.IPluginV3OneRuntime.__init__(self)
            self.plugin_name = op.name
            self.plugin_version = PLUGIN_VERSION
            self.plugin_namespace = PLUGIN_NAMESPACE
            self.num_outputs = len(op.outputs)
            self.runner = PluginRunner(op, launch, kernels)

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            return Plugin()

        def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
            combination = find_combination(op, dtypes(input_types))
            if combination is None or len(input_types) != len(op.inputs):
                raise ValueError(_wrong_types(op, dtypes(input_types)))
            outputs = op.type_combinations[combination][len(op.inputs) :]
            return [types[name] for name in outputs]

        # TensorRT 10.0 to 10.2 call it by this name.
        get_output_datatypes = get_output_data_types

        def get_output_shapes(
            self, inputs: Sequence[Any], shape_inputs: Sequence[Any], builder: Any
        ) -> list[Any]:
            check_shapes(op, [_known_sizes(expressions) for expressions in inputs])
            outputs = []
            for sources in axes:
                shape = trt.DimsExprs(len(sources))
                for axis, source in enumerate(sources):
                    shape[axis] = (
                        builder.constant(source)
                        if isinstance(source, int)
                        else inputs[source[0]][source[1]]
                    )
                outputs.append(shape)
            return outputs

        def supports_format_combination(
            self, position: int, in_out: Sequence[Any], num_inputs: int
        ) -> bool:
            if in_out[position].desc.format != trt.TensorFormat.LINEAR:
                return False
            seen = dtypes([tensor.desc.type for tensor in in_out[: position + 1]])
            return find_combination(op, seen) is not None

        def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            check_shapes(op, [tuple(tensor.desc.dims) for tensor in (*inputs, *outputs)])

        def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            self.runner.prepare(*_call(inputs, outputs, dtypes))

        def enqueue(
            self,
            input_desc: Sequence[Any],
            output_desc: Sequence[Any],
            inputs: Sequence[int],
            outputs: Sequence[int],
            workspace: int,
            stream: int,
        ) -> None:
            shapes, seen = _call(input_desc, output_desc, dtypes)
            self.runner.enqueue(shapes, seen, (*inputs, *outputs), stream)

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def get_workspace_size(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
            return 0

        def get_valid_tactics(self) -> list[int]:
            return []

        def set_tactic(self, tactic: int) -> None:
            pass

        def get_fields_to_serialize(self) -> Any:
            return trt.PluginFieldCollection([])

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name = op.name
            self.plugin_version = PLUGIN_VERSION
            self.plugin_namespace = PLUGIN_NAMESPACE
            self.field_names = trt.PluginFieldCollection([])

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            return Plugin()

    return Plugin, Creator


class PluginRunner:
    """The run-time half of a plugin, free of TensorRT: shapes and pointers in, one launch out.

    `prepare` may load and allocate; `enqueue` at shapes that were prepared only launches.
    """

    def __init__(
        self, op: SemanticOp, launch: Callable[..., KernelLaunch], kernels: Kernels
    ) -> None:
        """Nothing is loaded yet."""
        self._op = op
        self._launch = launch
        self._kernels = kernels
        ports = op.inputs + op.outputs
        self._values = [i for i, port in enumerate(ports) if port.dtypes == ports[0].dtypes]
        self._shapes: list[tuple[int, ...]] = []
        self._dtypes: list[str] = []
        # Aligned pointers or not -> what to launch; empty when there is nothing to do.
        self._ready: dict[bool, tuple[KernelLaunch, object]] = {}

    def prepare(self, shapes: list[tuple[int, ...]], dtypes: list[str]) -> None:
        """Check a call and load its kernels.

        Args:
            shapes: of inputs, then outputs.
            dtypes: of inputs, then outputs.

        Raises:
            ValueError: shapes or types that the operator does not have.
            RuntimeError: no image, or CUDA refuses.
        """
        op = self._op
        check_shapes(op, shapes)
        combination = find_combination(op, dtypes)
        if combination is None:
            raise ValueError(_wrong_types(op, dtypes))
        self._ready = {}
        for aligned in (True, False):
            launch = self._launch(
                shapes[: len(op.inputs)], value_dtype(op, combination), aligned=aligned
            )
            if 0 not in launch.grid:
                self._ready[aligned] = launch, self._kernels.prepare(op.name, launch.kernel)
        self._shapes, self._dtypes = shapes, dtypes

    def enqueue(
        self,
        shapes: list[tuple[int, ...]],
        dtypes: list[str],
        pointers: Sequence[int],
        stream: int,
    ) -> None:
        """Queue the kernel on a stream, and nothing else."""
        if shapes != self._shapes or dtypes != self._dtypes:
            self.prepare(shapes, dtypes)
        if not self._ready:
            return
        aligned = all(pointers[i] % _ALIGNMENT == 0 for i in self._values)
        launch, function = self._ready[aligned]
        self._kernels.driver.launch(function, launch, pointers, stream)


def _call(
    inputs: Sequence[Any], outputs: Sequence[Any], dtypes: Callable[[Sequence[Any]], list[str]]
) -> tuple[list[tuple[int, ...]], list[str]]:
    descs = (*inputs, *outputs)
    return [tuple(desc.dims) for desc in descs], dtypes([desc.type for desc in descs])


def _known_sizes(expressions: Any) -> tuple[int, ...]:
    """Sizes of a symbolic shape, -1 where one is not a constant."""
    return tuple(
        expressions[axis].get_constant_value() if expressions[axis].is_constant() else -1
        for axis in range(len(expressions))
    )


def _wrong_types(op: SemanticOp, got: Sequence[str]) -> str:
    allowed = "; ".join(", ".join(combination) for combination in op.type_combinations)
    return (
        f"{op.name}: expected types {allowed}, got {', '.join(got)}. Cast the inputs as the "
        "operator's table says."
    )


@functools.cache
def _has_module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
