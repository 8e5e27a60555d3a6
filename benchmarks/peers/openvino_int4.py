"""OpenVINO: a stateful model as optimum-intel exports it, its CPU plugin's best settings.

Weights int4 in groups of 128, activations quantised on the fly, an 8-bit cache, the rest in bf16
where the processor has it: OpenVINO's defaults, written out.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from visionllm_edge.benchmarks.peers.measure import Engine, Workload, report
from visionllm_edge.benchmarks.peers.peer import Peer, worker

__all__ = ["OPENVINO"]

OPENVINO = Peer(
    name="openvino",
    model="folder of optimum-cli export openvino --weight-format int4 --group-size 128",
    program="Python with openvino",
    runs=lambda program, model, workload: {
        "OpenVINO": (worker("openvino_int4", program, model, workload),)
    },
)


class _Engine:
    def __init__(self, compiled: Any) -> None:
        import numpy as np

        self._numpy = np
        self._request = compiled.create_infer_request()
        self._names = {name for port in compiled.inputs for name in port.get_names()}
        self._length = 0

    def prefill(self, tokens: Sequence[int]) -> int:
        self._request.reset_state()
        self._length = 0
        return self._step(tokens)

    def decode(self, token: int) -> int:
        return self._step([token])

    def _step(self, tokens: Sequence[int]) -> int:
        np = self._numpy
        past, self._length = self._length, self._length + len(tokens)
        given = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, self._length), np.int64),
            "position_ids": np.arange(past, self._length, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self._request.infer({name: given[name] for name in given if name in self._names})
        return int(self._request.get_tensor("logits").data[0, -1].argmax())


def _open(model: str, workload: Workload) -> tuple[Engine, dict[str, object]]:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": workload.threads,
        "PERFORMANCE_HINT": "LATENCY",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128",
        "KV_CACHE_PRECISION": "u8",
    }
    core = openvino.Core()
    compiled = core.compile_model(str(Path(model) / "openvino_model.xml"), "CPU", settings)
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    version = f"openvino {metadata.version('openvino')}"
    return _Engine(compiled), {"version": version, "precision": precision}


if __name__ == "__main__":
    report(_open, "Time a model in OpenVINO.")
