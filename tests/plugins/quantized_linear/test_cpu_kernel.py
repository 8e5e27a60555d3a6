"""The CPU kernels of the quantised linear layer against the reference, in every instruction set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.plugins.conftest import PlantFault
from tests.plugins.cpu.nodes import open_session, run
from tests.plugins.quantized_linear.cases import Inputs, make_inputs, one_node_model
from visionllm_edge.plugins.cpu.library import instruction_set
from visionllm_edge.plugins.quantized_linear.reference import quantized_linear

SETS = ["avx512vnni", "avx512", "avx2", "portable"]

# (rows, K, N, bits, block): steps of one to three rows and the larger ones that go through tiles,
# rows of weights that end inside a vector, outputs that fill no tile, more inputs than one stretch;
# so many rows that tasks are blocks of them.
SHAPES = [
    (1, 576, 70, 4, 32),
    (2, 1280, 33, 4, 64),
    (3, 384, 5, 4, 128),
    (1, 48, 9, 4, 16),
    (1, 1536, 66, 8, 32),
    (3, 192, 31, 8, 64),
    (2, 80, 3, 8, 16),
    (5, 576, 97, 4, 32),
    (4, 1024, 64, 4, 256),
    (17, 640, 40, 4, 128),
    (65, 96, 20, 4, 32),
    (6, 1088, 35, 8, 64),
    (13, 48, 130, 8, 16),
    (9, 80, 1, 4, 16),
    (4, 320, 7, 8, 32),
    (2060, 96, 5, 4, 32),
]


@pytest.fixture(params=SETS)
def kernel_set(
    request: pytest.FixtureRequest, cpu_library: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The library, asked for one of its sets."""
    monkeypatch.setenv("VISIONLLM_EDGE_CPU_ISA", request.param)
    if instruction_set(cpu_library) != request.param:
        pytest.skip(f"this processor has no {request.param}")
    yield cpu_library


def check(
    library: Path,
    inputs: Inputs,
    *,
    bits: int,
    block: int,
    level: int,
    threads: int = 2,
    expected: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """The kernel's answer, equal to the reference but for the order of float32 additions."""
    model = one_node_model(inputs, accuracy_level=level)
    result = run(model, library, {"x": inputs["x"]}, threads=threads)
    settings: dict[str, Any] = {"bits": bits, "block_size": block, "accuracy_level": level}
    if expected is None:
        expected = quantized_linear(*inputs.values(), **settings)
    # The sum of magnitudes is what roundings are in proportion to.
    size = quantized_linear(
        np.abs(inputs["x"]),
        np.full_like(inputs["weight"], 255),
        np.abs(inputs["scales"]),
        **settings,
    )
    np.testing.assert_array_less(np.abs(result - expected), 1e-5 * size + 1e-30)
    return result


@pytest.mark.parametrize("level", [1, 4])
@pytest.mark.parametrize(("rows", "k", "n", "bits", "block"), SHAPES)
def test_kernel_equals_reference(
    kernel_set: Path, rows: int, k: int, n: int, bits: int, block: int, level: int
) -> None:
    inputs = make_inputs(rows, k, n, bits=bits, block=block)
    check(kernel_set, inputs, bits=bits, block=block, level=level)


def test_every_set_gets_the_same_whole_numbers(kernel_set: Path) -> None:
    # One block: a single whole number too large or too small would be 2e-4 of the result.
    inputs = make_inputs(7, 32, 50, bits=4, block=32, batch=3)
    result = check(kernel_set, inputs, bits=4, block=32, level=4)
    expected = quantized_linear(*inputs.values(), bits=4, block_size=32, accuracy_level=4)
    np.testing.assert_allclose(result, expected, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("rows", [1, 6])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_largest_numbers_do_not_saturate(kernel_set: Path, bits: int, rows: int) -> None:
    # All bytes 255 or 0 and activations of one size: the largest sums there are.
    for byte in (0, 255):
        inputs = make_inputs(rows, 512, 16, bits=bits, block=256)
        inputs["weight"][:] = byte
        inputs["x"][:] = np.where(np.arange(512) < 256, 1.0, -1.0)
        check(kernel_set, inputs, bits=bits, block=256, level=4)


@pytest.mark.parametrize("rows", [1, 8])
def test_blocks_of_zeros_and_of_tiny_numbers(kernel_set: Path, rows: int) -> None:
    inputs = make_inputs(rows, 128, 16, bits=4, block=32)
    inputs["x"][..., :32] = 0
    inputs["x"][..., 32:64] = 1e-40
    check(kernel_set, inputs, bits=4, block=32, level=4)
    inputs["x"][:] = 0
    assert not check(kernel_set, inputs, bits=4, block=32, level=4).any()


def test_rows_do_not_depend_on_their_company(kernel_set: Path) -> None:
    inputs = make_inputs(40, 256, 48, bits=4, block=32)
    whole = check(kernel_set, inputs, bits=4, block=32, level=4, threads=1)
    for rows in (1, 2, 3, 4, 9):
        few = inputs | {"x": inputs["x"][:, :rows]}
        part = check(kernel_set, few, bits=4, block=32, level=4)
        np.testing.assert_allclose(
            part, whole[:, :rows], rtol=1e-4, atol=1e-5 * np.abs(whole).max()
        )


def test_no_rows(cpu_library: Path) -> None:
    inputs = make_inputs(1, 64, 8, bits=4, block=32)
    inputs["x"] = inputs["x"][:, :0]
    assert run(one_node_model(inputs), cpu_library, {"x": inputs["x"]}).shape == (1, 0, 8)


def test_weights_may_be_inputs_of_the_graph(cpu_library: Path) -> None:
    inputs = make_inputs(3, 64, 8, bits=4, block=32)
    result = run(one_node_model(inputs, constant=False), cpu_library, inputs)
    constant = run(one_node_model(inputs), cpu_library, {"x": inputs["x"]})
    assert np.array_equal(result, constant)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"K": 128}, r"input 'x': axis 2 expected 128, got 64"),
        ({"N": 9}, r"input 'weight' expected \[9, 2, 16\], got \[8, 2, 16\]"),
        ({"bits": 5}, r"expected bits 4 or 8 .* got bits 5"),
        ({"block_size": 48}, r"got bits 4, block_size 48, K 64"),
        ({"block_size": 64}, r"input 'weight' expected \[8, 1, 32\], got \[8, 2, 16\]"),
        ({"accuracy_level": 2}, r"accuracy_level expected 1 or 4, got 2"),
    ],
)
def test_refuses_what_does_not_fit(
    cpu_library: Path, attributes: dict[str, Any], message: str
) -> None:
    inputs = make_inputs(1, 64, 8, bits=4, block=32)
    session = open_session(one_node_model(inputs, **attributes), cpu_library)
    with pytest.raises(Exception, match=f"QuantizedLinear: .*{message}"):
        session.run(None, {"x": inputs["x"]})


def test_a_missing_attribute_is_refused_when_the_graph_loads(cpu_library: Path) -> None:
    inputs = make_inputs(1, 64, 8, bits=4, block=32)
    model = one_node_model(inputs)
    attributes = model.graph.node[0].attribute
    attributes.remove(next(a for a in attributes if a.name == "block_size"))
    with pytest.raises(Exception, match="block_size"):
        open_session(model, cpu_library)


FAULTS: dict[str, Callable[[Inputs], Inputs]] = {
    "the halves of a byte swapped": lambda inputs: {
        "weight": inputs["weight"] << 4 | inputs["weight"] >> 4
    },
    "stored numbers one too large": lambda inputs: {"weight": inputs["weight"] + 0x11},
    "scales of the next block": lambda inputs: {"scales": np.roll(inputs["scales"], 1, axis=1)},
    "scales of the next output": lambda inputs: {"scales": np.roll(inputs["scales"], 1, axis=0)},
    "activations of the next row": lambda inputs: {"x": np.roll(inputs["x"], 1, axis=1)},
}


@pytest.mark.parametrize("rows", [2, 7])
@pytest.mark.parametrize("fault", FAULTS)
def test_the_comparison_sees_wrong_inputs(cpu_library: Path, fault: str, rows: int) -> None:
    inputs = make_inputs(rows, 256, 12, bits=4, block=32)
    right = quantized_linear(*inputs.values(), bits=4, block_size=32, accuracy_level=4)
    wrong = inputs | FAULTS[fault](inputs)
    with pytest.raises(AssertionError):
        check(cpu_library, wrong, bits=4, block=32, level=4, expected=right)


@pytest.mark.parametrize(
    ("kernel_set", "file", "right", "wrong", "rows"),
    [
        ("avx512vnni", "cpu_vnni_vector.h", "high[o], second);", "low[o], second);", 1),
        ("avx512vnni", "cpu_vnni.h", "? -8 * sum : -128 * sum;", "? 0 : -128 * sum;", 7),
        ("avx2", "cpu_avx2.h", "? -8 * sum : 0;", "? -7 * sum : 0;", 2),
    ],
    ids=["even inputs twice", "no zero point", "another zero point"],
)
def test_the_comparison_sees_a_wrong_kernel(
    plant_fault: PlantFault,
    monkeypatch: pytest.MonkeyPatch,
    cpu_library: Path,
    kernel_set: str,
    file: str,
    right: str,
    wrong: str,
    rows: int,
) -> None:
    monkeypatch.setenv("VISIONLLM_EDGE_CPU_ISA", kernel_set)
    if instruction_set(cpu_library) != kernel_set:
        pytest.skip(f"this processor has no {kernel_set}")
    inputs = make_inputs(rows, 256, 12, bits=4, block=32)
    check(cpu_library, inputs, bits=4, block=32, level=4)
    library = plant_fault(f"quantized_linear/{file}", right, wrong)
    with pytest.raises(AssertionError):
        check(library, inputs, bits=4, block=32, level=4)
