"""The Python plugin against a fake TensorRT and a fake driver: tables, refusals, launches."""

from __future__ import annotations

from typing import Any

import pytest

from tests.plugins.tensorrt_glue.fakes import (
    DataType,
    Desc,
    DynamicDesc,
    Expr,
    ExprBuilder,
    FakeDriver,
    FakeTensorRT,
    TensorFormat,
)
from visionllm_edge.plugins.ms_deform_attn.cuda import launch
from visionllm_edge.plugins.ms_deform_attn.spec import MS_DEFORM_ATTN
from visionllm_edge.plugins.tensorrt_glue.python_plugin import kernel_ops, register

NAME = MS_DEFORM_ATTN.name
F32, F16, BF16, I32 = DataType.FLOAT, DataType.HALF, DataType.BF16, DataType.INT32
TYPES = {
    "float32": [F32, I32, I32, F32, F32, F32],
    "float16": [F16, I32, I32, F32, F16, F16],
    "bfloat16": [BF16, I32, I32, F32, BF16, BF16],
}
# N 2, S 20, M 3, D 8, L 2, Lq 5, P 4.
SHAPES = [(2, 20, 3, 8), (2, 2), (2,), (2, 5, 3, 2, 4, 2), (2, 5, 3, 2, 4), (2, 5, 3, 8)]
POINTERS = [4096 * (i + 1) for i in range(6)]
STREAM = 77


def make_plugin(
    *, image: bytes | None = b"cubin", driver: FakeDriver | None = None, name: str = NAME
) -> Any:
    trt = FakeTensorRT()
    register(trt, kernels={name: image}, driver=driver or FakeDriver())
    creator = trt.registry.creators[name, "1", "visionllm"]
    return creator.create_plugin(name, creator.field_names, None)


def descs(
    shapes: list[tuple[int, ...]] = SHAPES, dtype: str = "float32"
) -> tuple[list[Desc], list[Desc]]:
    every = [Desc(shape, kind) for shape, kind in zip(shapes, TYPES[dtype], strict=True)]
    return every[:5], every[5:]


def enqueue(plugin: Any, inputs: list[Desc], outputs: list[Desc], pointers: list[int]) -> None:
    plugin.enqueue(inputs, outputs, pointers[:5], pointers[5:], 0, STREAM)


def test_every_operator_with_a_kernel_is_registered_once() -> None:
    trt = FakeTensorRT()
    register(trt)
    register(trt)
    assert {key[0] for key in trt.registry.creators} == set(kernel_ops())
    assert set(kernel_ops()) == {"MultiScaleDeformableAttention", "GridSamplePromptPool"}
    for creator in trt.registry.creators.values():
        assert (creator.plugin_version, creator.plugin_namespace) == ("1", "visionllm")
        plugin = creator.create_plugin(creator.name, creator.field_names, None)
        assert plugin.plugin_name == creator.name
        assert plugin.num_outputs == 1
        assert list(plugin.get_fields_to_serialize()) == []


def test_a_second_creator_of_the_name_is_an_error() -> None:
    trt = FakeTensorRT()
    other = FakeTensorRT()
    other.registry = trt.registry
    register(other)
    with pytest.raises(RuntimeError, match="registry refused the creator"):
        register(trt)


def test_a_kernel_for_an_unknown_operator_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"kernels: expected operators among .* got \['Nothing'\]"):
        register(FakeTensorRT(), kernels={"Nothing": b""})


@pytest.mark.parametrize("dtype", TYPES)
def test_output_type_follows_the_table(dtype: str) -> None:
    plugin = make_plugin()
    *inputs, output = TYPES[dtype]
    assert plugin.get_output_data_types(inputs) == [output]
    # As TensorRT 10.0 to 10.2 call it.
    assert plugin.get_output_datatypes(inputs) == [output]


@pytest.mark.parametrize(
    "types",
    [
        [F16, I32, I32, F16, F16],  # half-precision locations: what the stock plugin takes
        [F32, DataType.INT64, I32, F32, F32],
        [F16, I32, I32, F32, F32],
        [F32, I32, I32, F32],
    ],
)
def test_other_types_are_refused(types: list[DataType]) -> None:
    with pytest.raises(ValueError, match=f"{NAME}: expected types float32, int32"):
        make_plugin().get_output_data_types(types)


def exprs(shape: list[int | str]) -> list[Expr]:
    return [Expr(size) for size in shape]


DYNAMIC: list[list[int | str]] = [
    ["n", "s", 3, 8],
    [2, 2],
    [2],
    ["n", "q", 3, 2, 4, 2],
    ["n", "q", 3, 2, 4],
]


def test_output_shape_is_made_of_the_inputs_expressions() -> None:
    (shape,) = make_plugin().get_output_shapes([exprs(s) for s in DYNAMIC], [], ExprBuilder())
    assert [e.value for e in shape] == ["n", "q", 3, 8]


@pytest.mark.parametrize(
    ("index", "shape", "said"),
    [
        (0, ["n", "s", 3], "'value' expected \\[N, S, M, D\\], got rank 3"),
        (1, [2, 3], "'spatial_shapes' .* expected 2 on axis 1"),
        (2, [4], "'level_start_index' .* expected 2 on axis 0"),
        (4, ["n", "q", 3, 2, 5], "'attention_weights' .* expected 4 on axis 4"),
    ],
)
def test_other_shapes_are_refused(index: int, shape: list[int | str], said: str) -> None:
    shapes = [*DYNAMIC]
    shapes[index] = shape
    with pytest.raises(ValueError, match=said):
        make_plugin().get_output_shapes([exprs(s) for s in shapes], [], ExprBuilder())


@pytest.mark.parametrize("dtype", TYPES)
def test_only_linear_formats_of_the_table_are_supported(dtype: str) -> None:
    plugin = make_plugin()
    tensors = [DynamicDesc(Desc(s, t)) for s, t in zip(SHAPES, TYPES[dtype], strict=True)]
    for position in range(6):
        assert plugin.supports_format_combination(position, tensors, 5)
        right = tensors[position].desc
        for wrong in (
            Desc(right.dims, right.type, TensorFormat.CHW32),
            Desc(right.dims, DataType.INT8),
        ):
            tensors[position] = DynamicDesc(wrong)
            assert not plugin.supports_format_combination(position, tensors, 5)
        tensors[position] = DynamicDesc(right)


@pytest.mark.parametrize(("dtype", "code"), [("float32", "f32"), ("float16", "f16")])
def test_enqueue_launches_what_the_operator_says(dtype: str, code: str) -> None:
    driver = FakeDriver()
    plugin = make_plugin(driver=driver).attach_to_context(None)
    inputs, outputs = descs(dtype=dtype)
    plugin.on_shape_change(inputs, outputs)
    enqueue(plugin, inputs, outputs, POINTERS)
    ((function, what, pointers, stream),) = driver.launches
    assert what == launch(SHAPES[:5], dtype)
    assert function == f"1:msda_{code}_vec"
    assert pointers == tuple(POINTERS)
    assert what.scalars == (2, 20, 3, 8, 2, 5, 4)
    assert stream == STREAM


@pytest.mark.parametrize("index", [0, 4, 5])
def test_unaligned_values_take_the_general_kernel(index: int) -> None:
    driver = FakeDriver()
    plugin = make_plugin(driver=driver)
    inputs, outputs = descs()
    pointers = [*POINTERS]
    pointers[index] += 4
    enqueue(plugin, inputs, outputs, pointers)
    assert driver.launches[0][0] == "1:msda_f32_any"
    assert driver.launches[0][1] == launch(SHAPES[:5], "float32", aligned=False)
    pointers = [*POINTERS]
    pointers[2] += 4  # the level starts are read one by one
    enqueue(plugin, inputs, outputs, pointers)
    assert driver.launches[1][0] == "1:msda_f32_vec"


def test_enqueue_only_launches_so_a_graph_can_capture_it() -> None:
    driver = FakeDriver()
    plugin = make_plugin(driver=driver)
    inputs, outputs = descs()
    plugin.on_shape_change(inputs, outputs)
    driver.capturing = True
    enqueue(plugin, inputs, outputs, POINTERS)
    enqueue(plugin, inputs, outputs, [pointer + 4 for pointer in POINTERS])
    assert [function for function, *_ in driver.launches] == ["1:msda_f32_vec", "1:msda_f32_any"]
    assert driver.loaded == [(1, b"cubin")]


def test_the_fake_sees_a_load_inside_a_capture() -> None:
    driver = FakeDriver(capturing=True)
    plugin = make_plugin(driver=driver)
    with pytest.raises(AssertionError, match="load while the stream is being captured"):
        enqueue(plugin, *descs(), POINTERS)


def test_images_are_loaded_once_per_context_and_shared_by_clones() -> None:
    driver = FakeDriver()
    plugin = make_plugin(driver=driver)
    for context in (1, 2, 1):
        driver.current_context = context
        plugin.clone().on_shape_change(*descs())
        plugin.clone().on_shape_change(*descs(dtype="float16"))
    assert driver.loaded == [(1, b"cubin"), (2, b"cubin")]


def test_no_queries_means_no_launch_and_no_kernel() -> None:
    driver = FakeDriver()
    plugin = make_plugin(driver=driver, image=None)
    shapes = [*SHAPES[:3], (2, 0, 3, 2, 4, 2), (2, 0, 3, 2, 4), (2, 0, 3, 8)]
    inputs, outputs = descs(shapes)
    plugin.on_shape_change(inputs, outputs)
    enqueue(plugin, inputs, outputs, POINTERS)
    assert driver.launches == []


def test_without_an_image_running_is_an_error_with_the_next_step() -> None:
    plugin = make_plugin(image=None)
    with pytest.raises(RuntimeError, match=r"no kernel image is registered.*register\(trt"):
        plugin.on_shape_change(*descs())


def test_registering_again_replaces_images() -> None:
    trt, driver = FakeTensorRT(), FakeDriver()
    register(trt, driver=driver)
    creator = trt.registry.creators[NAME, "1", "visionllm"]
    plugin = creator.create_plugin(NAME, creator.field_names, None)
    register(trt, kernels={NAME: b"first"})
    plugin.on_shape_change(*descs())
    register(trt, kernels={NAME: b"second"})
    plugin.on_shape_change(*descs())
    register(trt, kernels={NAME: None})
    plugin.on_shape_change(*descs())
    assert [image for _, image in driver.loaded] == [b"first", b"second"]


def test_wrong_shapes_and_types_at_run_time_are_refused() -> None:
    plugin = make_plugin()
    inputs, outputs = descs([*SHAPES[:5], (2, 6, 3, 8)])
    with pytest.raises(ValueError, match=r"'output' .* expected 5 on axis 1"):
        plugin.on_shape_change(inputs, outputs)
    inputs, outputs = descs()
    outputs[0].type = F16
    with pytest.raises(ValueError, match="expected types"):
        plugin.on_shape_change(inputs, outputs)


def test_pooling_is_launched_too() -> None:
    from visionllm_edge.plugins.grid_sample_prompt_pool import cuda as pool

    driver = FakeDriver()
    plugin = make_plugin(driver=driver, name="GridSamplePromptPool")
    shapes = [(2, 24, 24, 32), (3, 48, 64), (3,), (3, 32)]
    tensors = [Desc(s, t) for s, t in zip(shapes, [F16, F32, I32, F16], strict=True)]
    plugin.on_shape_change(tensors[:3], tensors[3:])
    plugin.enqueue(tensors[:3], tensors[3:], [256, 512, 768], [1024], 0, STREAM)
    ((_, what, pointers, _),) = driver.launches
    assert what == pool.launch(shapes[:3], "float16")
    assert pointers == (256, 512, 768, 1024)
