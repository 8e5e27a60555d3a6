"""onnxruntime-genai: a folder of its model builder (int4, block 32, accuracy level 4)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from visionllm_edge.benchmarks.peers.measure import Engine, Workload, report
from visionllm_edge.benchmarks.peers.peer import Peer, worker

__all__ = ["GENAI"]

GENAI = Peer(
    name="genai",
    model="folder of onnxruntime_genai.models.builder",
    program="Python with onnxruntime-genai",
    runs=lambda program, model, workload: {
        "onnxruntime-genai": (worker("genai", program, model, workload),)
    },
)


class _Engine:
    def __init__(self, model: Any, length: int) -> None:
        self._model = model
        self._length = length
        self._generator: Any = None

    def prefill(self, tokens: Sequence[int]) -> int:
        import onnxruntime_genai as genai

        parameters = genai.GeneratorParams(self._model)
        parameters.set_search_options(
            max_length=self._length, min_length=self._length, do_sample=False
        )
        self._generator = genai.Generator(self._model, parameters)
        self._generator.append_tokens(list(tokens))
        return self.decode(0)

    def decode(self, token: int) -> int:
        # The generator appends the token that it chose itself.
        self._generator.generate_next_token()
        return int(self._generator.get_next_tokens()[0])


def _open(model: str, workload: Workload) -> tuple[Engine, dict[str, object]]:
    import onnxruntime_genai as genai

    config = genai.Config(model)
    session = {"session_options": {"intra_op_num_threads": workload.threads}}
    config.overlay(json.dumps({"model": {"decoder": session}}))
    length = max(workload.prompt, *workload.contexts) + workload.steps + 8
    version = f"onnxruntime-genai {metadata.version('onnxruntime-genai')}"
    return _Engine(genai.Model(config), length), {"version": version}


if __name__ == "__main__":
    report(_open, "Time a model in onnxruntime-genai.")
