"""Compare a lowered graph with the golden outputs of its bundle, on this machine.

ONNX Runtime stands in for the device: it runs what is in the graph (also in fp16, int8, fp8 and, by
emulation, in bf16), so a wrong lowering is found before a kit travels. What it cannot show is what
a builder makes of the graph afterwards. A graph whose plugin nodes carry no function cannot run
here.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from visionllm_edge.export.graph_session import GraphSession
from visionllm_edge.export.parity import TensorParity, compare_with_limits, require_parity
from visionllm_edge.export.passes.emulate_bfloat16 import emulate_bfloat16
from visionllm_edge.runtime.backends.base import PAST_PREFIX, PRESENT_PREFIX
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.engines.golden import read_golden
from visionllm_edge.runtime.errors import BundleError
from visionllm_edge.runtime.ports import Array

__all__ = ["Golden", "check_lowered"]

_CACHE_TYPES = {
    ir.DataType.FLOAT: np.float32,
    ir.DataType.FLOAT16: np.float16,
    ir.DataType.INT8: np.int8,
}


class Golden:
    """One stage's golden run.

    Attributes:
        bucket: the variant it belongs to.
        inputs: name -> array; a cache may be in another type than the graph's.
        outputs: name -> true array; of the cache, the rows that have a value.
        limits: precision -> output -> largest error allowed.
    """

    def __init__(self, bundle: Bundle, stage: str) -> None:
        """Read it.

        Raises:
            BundleError: the bundle carries none, or none with limits per precision.
        """
        entry = bundle.manifest.stages[stage].parity.get("golden")
        if not isinstance(entry, dict) or not isinstance(entry.get("limits", {}).get("fp32"), dict):
            raise BundleError(
                f"bundle '{bundle.root.name}': stage '{stage}' carries no golden file with limits "
                "per precision. Compile it again, or verify with --checkpoint."
            )
        bucket = entry["bucket"]
        self.bucket = None if bucket is None else (int(bucket[0]), int(bucket[1]))
        self.limits: dict[str, dict[str, float]] = entry["limits"]
        self.inputs, self.outputs = read_golden(bundle.file(entry["file"]))


def check_lowered(
    model: ir.Model, golden: Golden, *, precision: str, threads: int = 0
) -> list[TensorParity]:
    """Run a lowered graph on the golden inputs and compare every output.

    Args:
        model: lowered for the golden run's bucket; not usable afterwards.
        golden: of the stage.
        precision: that it was lowered to.
        threads: of ONNX Runtime; 0 leaves it to it.

    Raises:
        ExportError: the graph does not run here.
        ParityError: an output is wrong.
    """
    name = str(model.graph.name)
    if precision == "bf16":
        emulate_bfloat16(model)
    outputs = _run(model, golden.inputs, threads)
    for output in outputs:
        if output.startswith(PRESENT_PREFIX):
            # The golden file holds the rows of the cache that have a defined value.
            outputs[output] = outputs[output][:, :, : golden.outputs[output].shape[2]]
    report = compare_with_limits(outputs, golden.outputs, golden.limits[precision])
    require_parity(name, report)
    return report


def _run(model: ir.Model, inputs: dict[str, Array], threads: int) -> dict[str, Array]:
    ends = {value.name: value for value in model.graph.inputs}
    feeds = {
        key: _fitted(array, ends[key]) if key.startswith(PAST_PREFIX) else array
        for key, array in inputs.items()
    }
    with GraphSession(model, threads=threads) as session:
        return session.run(feeds)


def _fitted(cache: Array, end: ir.Value) -> Array:
    """A golden cache in the graph's type, filled up to its capacity where that is a number."""
    assert end.shape is not None and end.dtype is not None, "a lowered graph has both"
    rows = end.shape[2] if isinstance(end.shape[2], int) else cache.shape[2]
    out = np.zeros((*cache.shape[:2], rows, *cache.shape[3:]), _CACHE_TYPES[end.dtype])
    out[:, :, : cache.shape[2]] = cache
    return out
