"""How right the measured bundle is, so that no speed stands alone."""

from __future__ import annotations

from pathlib import Path

from visionllm_edge.benchmarks.accuracy import evaluate
from visionllm_edge.runtime.model import VisionLLM

__all__ = ["accuracy_of"]

# Pictures that no other evaluation of this package shows.
_SEED = 90_211


def accuracy_of(bundle: Path, images: int) -> dict[str, dict[str, float]]:
    """Metrics by task on freshly made pictures; detection, and captions where words are asked.

    Raises:
        BundleError, BackendError: it cannot be loaded or run.
    """
    model = VisionLLM.load(bundle, verify=False)
    out = {}
    for task in ("detect", "caption"):
        judged = evaluate(model, task=task, images=images, seed=_SEED)
        out[task] = {name: float(value) for name, value in judged.metrics.items()}
    return out
