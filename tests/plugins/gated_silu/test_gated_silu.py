"""The gate: function and CPU kernel against the reference, on every instruction set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.plugins.conftest import PlantFault
from tests.plugins.cpu.nodes import narrow, one_node_model, open_session, run
from visionllm_edge.plugins.cpu.library import instruction_set
from visionllm_edge.plugins.gated_silu.reference import gated_silu
from visionllm_edge.plugins.gated_silu.spec import GATED_SILU

# Relative to the largest number of the row: a unit in the last place of the type and a little.
LIMITS = {0: 3e-7, 1: 1e-3, 2: 8e-3}


def _rows(*shape: int) -> NDArray[np.float32]:
    x = np.random.default_rng(1).standard_normal(shape, dtype=np.float32) * 4
    edges = np.array([0.0, -0.0, 80.0, -80.0, 1e4, -1e4, 1e-30, -1e-30], np.float32)
    x.reshape(-1)[: min(len(edges), x.size)] = edges[: x.size]
    return x


def _check(library: Path | None, combination: int, *shape: int) -> None:
    rows = _rows(*shape)
    kind = GATED_SILU.type_combinations[combination][0]
    given = narrow(rows, kind)
    got = run(one_node_model(GATED_SILU, combination=combination), library, {"gate_up": rows})
    true = gated_silu(given.astype(np.float64))
    assert got.shape == true.shape and np.isfinite(got).all()
    scale = np.abs(true).max(initial=1e-30)
    assert float(np.abs(got - true).max(initial=0.0)) <= LIMITS[combination] * scale


SHAPES = [(1, 1, 2), (1, 1, 30), (1, 3, 64), (2, 5, 34), (1, 1, 11264), (1, 40, 3000), (1, 0, 8)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_function_equals_the_reference(shape: tuple[int, ...]) -> None:
    _check(None, 0, *shape)


@pytest.mark.parametrize("isa", ["avx512vnni", "avx512", "avx2", "portable"])
@pytest.mark.parametrize("combination", [0, 1, 2])
def test_the_kernel_equals_the_reference(
    isa: str, combination: int, cpu_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISIONLLM_EDGE_CPU_ISA", isa)
    if instruction_set(cpu_library) != isa:
        pytest.skip(f"this processor has no {isa}")
    for shape in SHAPES:
        _check(cpu_library, combination, *shape)


def test_an_odd_width_is_refused(cpu_library: Path) -> None:
    session = open_session(one_node_model(GATED_SILU), cpu_library)
    with pytest.raises(Exception, match="GatedSilu: input 'gate_up': axis 2 expected an even"):
        session.run(None, {"gate_up": np.zeros((1, 1, 3), np.float32)})


def test_what_is_not_a_number_stays_so(cpu_library: Path) -> None:
    rows = np.array([[[np.nan, 1.0, 2.0, 3.0]]], np.float32)
    got = run(one_node_model(GATED_SILU), cpu_library, {"gate_up": rows})
    assert np.isnan(got[0, 0, 0]) and np.isfinite(got[0, 0, 1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("right", "wrong"),
    [("gate + half * bytes, out", "gate, out"), ("row < end; ++row", "row + 1 < end; ++row")],
    ids=["the gate gates itself", "a row left out"],
)
def test_a_planted_fault_is_seen(right: str, wrong: str, plant_fault: PlantFault) -> None:
    library = plant_fault("gated_silu/cpu_op.cpp", right, wrong)
    with pytest.raises(AssertionError):
        _check(library, 0, 1, 40, 3000)
