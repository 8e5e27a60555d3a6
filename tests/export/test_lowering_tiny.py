"""Every stage of the tiny bundle on every target: it lowers, and its numbers pass the gate.

A graph that two targets share is run once, and a stage whose forms do not depend on plugins is
lowered without them only. ONNX Runtime stands in for the device; a graph whose plugin's function is
stripped cannot run in it, and is the same as one that can but for that.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from visionllm_edge.export.canonical import load_canonical
from visionllm_edge.export.check_lowered import Golden, check_lowered
from visionllm_edge.export.lowering import forms_for, lower
from visionllm_edge.plugins.semantic_op import DOMAIN
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.errors import ParityError
from visionllm_edge.runtime.targets import TARGETS, Target

pytestmark = pytest.mark.slow


def _classes() -> dict[str, tuple[Target, str, bool]]:
    """One target per release, precision and choice of plugins: the table lowers no finer."""
    out = {}
    for target in TARGETS.values():
        if target.backend == "onnxruntime":
            continue
        for precision in target.precisions:
            for plugins in (True, False):
                form = "plugins" if plugins else "standard"
                out[f"{target.release.label} {precision} {form}"] = (target, precision, plugins)
    return out


CLASSES = _classes()


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle, verify=False)


@pytest.fixture(scope="module")
def golden(bundle: Bundle) -> dict[str, Golden]:
    return {name: Golden(bundle, name) for name in bundle.manifest.stages}


@pytest.fixture(scope="module")
def checked() -> set[str]:
    """Digests of graphs that passed."""
    return set()


def _digest(model: ir.Model, precision: str) -> str:
    # Half-precision weights are made when they are read, so the graph is compared without them.
    lines = [precision, str(model.graph.opset_imports.get("")), *map(str, sorted(model.functions))]
    for node in model.graph:
        inputs = [value.name if value is not None else "" for value in node.inputs]
        lines.append(f"{node.op_type} {inputs} {[(v.name, v.dtype) for v in node.outputs]}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _rows(golden: Golden) -> int | None:
    """A capacity of the cache that is larger than the golden run's, where it has one."""
    rows = [array.shape[2] for name, array in golden.inputs.items() if name.startswith("past_key")]
    return max(rows) + 16 if rows else None


def _forms(target: Target, plugins: bool) -> dict[str, str]:
    operators = target.release.operators or frozenset()
    return {
        "CachedAttention": "tensor_scatter" if "TensorScatter" in operators else "cached_attention",
        "GatedSilu": "inline",
        "GridSamplePromptPool": "plugin" if plugins else "inline",
        "MultiScaleDeformableAttention": "plugin" if plugins else "gather",
    }


def _plugin_nodes(model: ir.Model, target: Target) -> list[ir.Node]:
    return [
        n for n in model.graph if n.domain == DOMAIN and "plugin" in forms_for(n.op_type, target)
    ]


@pytest.mark.parametrize("name", CLASSES)
def test_every_stage_lowers_and_passes_the_gate(
    name: str, bundle: Bundle, golden: dict[str, Golden], checked: set[str]
) -> None:
    target, precision, plugins = CLASSES[name]
    for stage in bundle.manifest.stages:
        expected = golden[stage]
        model = load_canonical(bundle, stage, expected.bucket)
        if plugins and not _plugin_nodes(model, target):
            continue
        entries = lower(
            model, target, precision=precision, plugins=plugins, capacity=_rows(expected)
        )
        forms = {entry.op: entry.form for entry in entries}
        assert forms.items() <= _forms(target, plugins).items()
        bodies = {function.name for function in model.functions.values()}
        ours = {node.op_type for node in model.graph if node.domain == DOMAIN}
        if ours - bodies:
            assert target.release.node_with_function == "function"
            continue
        digest = _digest(model, precision)
        if digest not in checked:
            report = check_lowered(model, expected, precision=precision)
            assert {tensor.name for tensor in report} == set(expected.outputs)
            checked.add(digest)


def test_every_target_belongs_to_a_class() -> None:
    labels = {target.release.label for target, _, _ in CLASSES.values()}
    for target in TARGETS.values():
        assert target.backend == "onnxruntime" or target.release.label in labels


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_wrong_causal_mask_is_refused(
    bundle: Bundle, golden: dict[str, Golden], precision: str
) -> None:
    model = load_canonical(bundle, "llm_decoder")
    lower(model, TARGETS["rtx-ada"], precision=precision)
    # The mask of an upper-left causal flag: a row sees the columns up to its own number, without
    # the rows that were in the cache before.
    (compare,) = [node for node in model.graph if node.op_type == "Greater"]
    own = compare.inputs[1]
    assert own is not None
    positions = own.producer()
    while positions is not None and positions.op_type != "Add":
        assert positions.inputs[0] is not None
        positions = positions.inputs[0].producer()
    assert positions is not None
    steps = next(
        value for value in positions.inputs
        if value is not None and value.producer() is not None
    )  # fmt: skip
    column = ir.Value(
        name="axis", shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64),
        const_value=ir.tensor(np.array([1], np.int64), name="axis"),
    )  # fmt: skip
    model.graph.register_initializer(column)
    wrong = ir.Node("", "Unsqueeze", [steps, column], num_outputs=1, name="upper_left")
    wrong.outputs[0].name, wrong.outputs[0].type = "upper_left", own.type
    model.graph.insert_before(compare, wrong)
    compare.replace_input_with(1, wrong.outputs[0])
    with pytest.raises(ParityError, match=r"'llm_decoder': output '.*' is wrong"):
        check_lowered(model, golden["llm_decoder"], precision=precision)


def test_nearest_sampling_is_refused(bundle: Bundle, golden: dict[str, Golden]) -> None:
    # What TensorRT makes of the mode `linear`; under the name that ONNX Runtime runs as such.
    expected = golden["det_encoder"]
    model = load_canonical(bundle, "det_encoder", expected.bucket)
    for function in model.functions.values():
        for node in function:
            if node.op_type == "GridSample":
                node.attributes["mode"] = ir.AttrString("mode", "nearest")
    lower(model, TARGETS["rtx-ada"], precision="fp16")
    with pytest.raises(ParityError, match="output 'memory' is wrong"):
        check_lowered(model, expected, precision="fp16")


def test_weights_of_a_canonical_graph_are_mapped(bundle: Bundle) -> None:
    model = load_canonical(bundle, "llm_decoder")
    large = [
        value.const_value
        for value in model.graph.initializers.values()
        if value.const_value is not None and value.const_value.nbytes >= 1024
    ]
    assert large
    assert all(isinstance(tensor, ir.ExternalTensor) for tensor in large)
    weights = bundle.root / "stages" / "llm_decoder.weights"
    assert sum(tensor.nbytes for tensor in large) <= weights.stat().st_size
    assert {node.domain for node in model.graph} == {"", DOMAIN}
