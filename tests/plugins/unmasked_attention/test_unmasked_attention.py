"""Full attention: function and CPU kernel against the reference, on every instruction set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.plugins.conftest import PlantFault
from tests.plugins.cpu.nodes import one_node_model, open_session, run
from visionllm_edge.plugins.cpu.library import instruction_set
from visionllm_edge.plugins.semantic_op import DOMAIN
from visionllm_edge.plugins.unmasked_attention.reference import unmasked_attention
from visionllm_edge.plugins.unmasked_attention.spec import UNMASKED_ATTENTION

Case = tuple[int, int, int, int, int, tuple[int, ...], list[int]]
# Against values of about 1. Level 1: sums of up to 600 products in fp32. Level 3: a weight between
# two numbers of bfloat16 may be rounded to the other one.
LIMITS = {1: 4e-6, 3: 4e-4}
SETS = ["avx512bf16", "avx512vnni", "avx512", "avx2", "portable"]

# batch, rows, keys, heads, depth, shape of the bias, bias index
CASES: list[Case] = [
    (1, 1, 1, 1, 1, (1, 1, 1, 1), [0]),
    (2, 5, 5, 2, 8, (1, 1, 1, 1), [0]),
    (6, 49, 49, 3, 32, (2, 3, 49, 49), [0, 1, 1]),
    (4, 49, 49, 2, 16, (1, 1, 49, 49), [0]),
    (3, 16, 16, 2, 32, (3, 2, 16, 16), [2, 0, 1]),
    (1, 577, 577, 1, 64, (1, 1, 1, 1), [0]),
    (2, 13, 131, 2, 20, (1, 2, 13, 131), [0]),
    (1, 30, 77, 3, 40, (1, 1, 1, 1), [0]),
    (1, 200, 257, 1, 136, (1, 1, 200, 257), [0]),
    (2, 9, 33, 1, 260, (2, 1, 9, 33), [1, 0]),
    (0, 4, 4, 2, 8, (1, 1, 1, 1), [0]),
]
SEEN = CASES[2]


def _inputs(case: Case) -> dict[str, NDArray[Any]]:
    batch, rows, keys, heads, depth, bias, index = case
    rng = np.random.default_rng(rows * keys + depth)

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, dtype=np.float32)

    return {
        "query": normal(batch, rows, heads * depth),
        "key": normal(batch, keys, heads * depth),
        "value": normal(batch, keys, heads * depth),
        "bias": normal(*bias) * 3 if bias[2:] != (1, 1) else np.zeros(bias, np.float32),
        "bias_index": np.array(index, np.int64),
    }


def _attributes(case: Case, level: int) -> dict[str, int | float]:
    return {"num_heads": case[3], "scale": 1.5 * case[4] ** -0.5, "accuracy_level": level}


def _model(case: Case, level: int = 1) -> Any:
    return one_node_model(UNMASKED_ATTENTION, attributes=_attributes(case, level))


def _true(case: Case, inputs: dict[str, NDArray[Any]], level: int = 1) -> NDArray[Any]:
    scale = 1.5 * case[4] ** -0.5
    return unmasked_attention(
        *inputs.values(), num_heads=case[3], scale=scale, accuracy_level=level
    )


def _check(library: Path | None, case: Case, level: int = 1, rounds_as: int | None = None) -> None:
    """A model of `level` gives what the reference gives at level `rounds_as`."""
    inputs = _inputs(case)
    got = run(_model(case, level), library, inputs)
    true = _true(case, inputs, rounds_as or level)
    assert got.shape == true.shape and np.isfinite(got).all()
    assert float(np.abs(got - true).max(initial=0.0)) <= LIMITS[rounds_as or level]


def _name(case: object) -> str:
    return "x".join(map(str, case[:5])) if isinstance(case, tuple) else str(case)


def test_no_other_operator_has_the_name() -> None:
    import onnx
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    others = {schema.name for schema in onnx.defs.get_all_schemas_with_history()}
    others |= {s.name for s in state.get_all_operator_schema() if s.domain != DOMAIN}
    assert "GroupQueryAttention" in others
    assert UNMASKED_ATTENTION.name not in others


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_the_function_equals_the_reference(case: Case) -> None:
    _check(None, case)
    _check(None, case, level=3, rounds_as=1)


def _use(isa: str, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISIONLLM_EDGE_CPU_ISA", isa)
    if instruction_set(library) != isa:
        pytest.skip(f"this processor has no {isa}")


@pytest.mark.parametrize("isa", SETS)
def test_the_kernel_equals_the_reference(
    isa: str, cpu_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _use(isa, cpu_library, monkeypatch)
    for case in CASES:
        _check(cpu_library, case)
        _check(cpu_library, case, level=3, rounds_as=3 if isa == "avx512bf16" else 1)


def test_what_rounding_to_bfloat16_costs() -> None:
    inputs = [_inputs(case) for case in CASES[:-1]]
    errors = [
        np.abs(_true(case, given, 3) - _true(case, given)).max()
        for case, given in zip(CASES, inputs, strict=False)
    ]
    # So a kernel that rounds where it must not, or the other way round, is told by the limits.
    assert 10 * LIMITS[3] < max(errors) < 0.04


def test_the_threads_change_no_bit(cpu_library: Path) -> None:
    case: Case = (2, 200, 200, 3, 32, (1, 1, 1, 1), [0])
    one, two = (run(_model(case), cpu_library, _inputs(case), threads=n) for n in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_large_scores_and_a_mask_stay_finite(cpu_library: Path) -> None:
    inputs = _inputs(SEEN)
    inputs["query"] *= 1000
    inputs["bias"][:, :, :, 7] = -np.inf
    got = run(_model(SEEN), cpu_library, inputs)
    true = _true(SEEN, inputs)
    # A score of some thousands is rounded by some ten-thousandths.
    assert float(np.abs(got - true).max()) <= 5e-3
    inputs["key"][0, 3, 0] = np.nan
    for level in (1, 3):
        got = run(_model(SEEN, level), cpu_library, inputs)
        assert np.isnan(got[0, :, :32]).all() and np.isfinite(got[0, :, 32:]).all()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("query", (6, 49, 97), "axis 2 expected a multiple of the 3 heads, got 97"),
        ("key", (5, 49, 96), "input 'key': axis 0 expected 6, got 5"),
        ("value", (6, 48, 96), "input 'value': axis 1 expected 49, got 48"),
        ("bias", (2, 2, 49, 49), "axis 1 expected 1 or the 3 heads, got 2"),
        ("bias", (2, 3, 49, 48), r"expected \[.., .., 49, 49\] or \[.., .., 1, 1\], got"),
        ("bias_index", (4,), "expected a divisor of the batch of 6, got 4"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(
    name: str, shape: tuple[int, ...], message: str, cpu_library: Path
) -> None:
    inputs = _inputs(SEEN)
    inputs[name] = np.zeros(shape, inputs[name].dtype)
    with pytest.raises(Exception, match=f"UnmaskedAttention: .*{message}"):
        open_session(_model(SEEN), cpu_library).run(None, inputs)


def test_an_index_without_a_bias_is_refused(cpu_library: Path) -> None:
    inputs = _inputs(SEEN)
    inputs["bias_index"][1] = 2
    with pytest.raises(Exception, match="'bias_index' expected numbers from 0 to 1, got 2"):
        open_session(_model(SEEN), cpu_library).run(None, inputs)


def test_another_level_is_refused(cpu_library: Path) -> None:
    with pytest.raises(Exception, match="accuracy_level expected 1 or 3, got 4"):
        open_session(_model(SEEN, 4), cpu_library).run(None, _inputs(SEEN))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("_mm512_slli_epi32(halves(high), 16)", "_mm512_slli_epi32(halves(low), 16)"),
        ("at < depth ? BFloat16::narrow(from[at]) : 0", "at < depth ? to[at - 1] : 0"),
        ("const int64_t pairs = (count + 1) / 2;", "const int64_t pairs = count / 2;"),
    ],
    ids=["the even keys twice", "a channel of its neighbour", "the last key left out"],
)
def test_a_planted_fault_in_bfloat16_is_seen(
    right: str, wrong: str, plant_fault: PlantFault, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = plant_fault("unmasked_attention/cpu_bf16.h", right, wrong)
    _use("avx512bf16", library, monkeypatch)
    with pytest.raises(AssertionError):
        for case in (SEEN, CASES[7]):
            _check(library, case, level=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("cpu_kernel.h", "lane < static_cast<int32_t>(count)", "lane < 16"),
        ("cpu_kernel.h", "entry % call.repeat", "entry % 1"),
        ("cpu_kernel.h", "(call.bias_heads > 1 ? i % call.heads : 0)", "0"),
        ("cpu_op.cpp", "(part + 1) * call.rows / parts}", "(part + 1) * call.rows / parts - 1}"),
    ],
    ids=["a key too many", "the first bias for all", "one bias for all heads", "a row left out"],
)
def test_a_planted_fault_is_seen(
    file: str, right: str, wrong: str, plant_fault: PlantFault
) -> None:
    library = plant_fault(f"unmasked_attention/{file}", right, wrong)
    with pytest.raises(AssertionError):
        _check(library, SEEN)
