"""This project: the language model of a bundle."""

from __future__ import annotations

from pathlib import Path

from visionllm_edge.benchmarks.peers.measure import Engine, Workload, report
from visionllm_edge.benchmarks.peers.peer import Peer, worker

__all__ = ["OURS", "OURS_NAME"]

OURS_NAME = "visionllm-edge"

OURS = Peer(
    name="ours",
    model="bundle",
    program="Python with visionllm-edge",
    runs=lambda program, model, workload: {OURS_NAME: (worker("ours", program, model, workload),)},
)


def _open(model: str, workload: Workload) -> tuple[Engine, dict[str, object]]:
    from visionllm_edge.benchmarks.llm_engine import open_llm

    longest = max(workload.prompt, *workload.contexts) + workload.steps + 8
    engine = open_llm(Path(model), threads=workload.threads or None, positions=longest)
    return engine, {
        "model_bytes": engine.sizes.weight_bytes,
        "cache_bytes": engine.sizes.cache_bytes,
        "bytes_per_token": {str(n): engine.sizes.bytes_read(n) for n in workload.contexts},
    }


if __name__ == "__main__":
    report(_open, "Time a bundle's language model.")
