"""transformers on torch, in bf16: the checkpoint itself."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import Any

from visionllm_edge.benchmarks.peers.measure import Engine, Workload, report
from visionllm_edge.benchmarks.peers.peer import Peer, worker

__all__ = ["TORCH"]

TORCH = Peer(
    name="torch",
    model="Hugging Face folder",
    program="Python with torch and transformers",
    runs=lambda program, model, workload: {
        "torch bf16": (worker("torch_bf16", program, model, workload),)
    },
)


class _Engine:
    def __init__(self, model: Any) -> None:
        self._model = model
        self._cache: Any = None

    def prefill(self, tokens: Sequence[int]) -> int:
        from transformers import DynamicCache

        self._cache = DynamicCache()
        return self._step(tokens)

    def decode(self, token: int) -> int:
        return self._step([token])

    def _step(self, tokens: Sequence[int]) -> int:
        import torch

        with torch.inference_mode():
            output = self._model(
                torch.tensor([list(tokens)]),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        return int(output.logits[0, -1].argmax())


def _open(model: str, workload: Workload) -> tuple[Engine, dict[str, object]]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(workload.threads)
    loaded: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    version = f"torch {torch.__version__}, transformers {metadata.version('transformers')}"
    return _Engine(loaded.eval()), {"version": version}


if __name__ == "__main__":
    report(_open, "Time a model in torch.")
