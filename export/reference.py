"""The torch model behind the runtime's own pipeline: the reference that a bundle is compared with.

Preprocessing, prompts, cache handling and postprocessing are the runtime's; only the stages are
torch components in fp32 instead of compiled graphs. So a difference between a bundle and its
reference is a difference between graphs, and a latency ratio is one between engines.
"""

from __future__ import annotations

from pathlib import Path

from visionllm_edge.export.checkpoint import Checkpoint, load_model
from visionllm_edge.export.torch_stages import TorchStages
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.errors import BundleError
from visionllm_edge.runtime.model import VisionLLM
from visionllm_edge.runtime.pipelines.loading import load_pipeline

__all__ = ["reference_model"]


def reference_model(bundle: Path, checkpoint: Path) -> VisionLLM:
    """A model with the bundle's constants and tokenizer, whose stages run in torch.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        BundleError: the bundle was compiled from another checkpoint.
    """
    opened, source = Bundle.open(bundle), Checkpoint(checkpoint)
    compiled, given = opened.manifest.checkpoint.fingerprint, source.fingerprint()
    if compiled != given:
        raise BundleError(
            f"bundle '{opened.root.name}': expected the checkpoint {compiled}, got '{checkpoint}' "
            f"with {given}. Give the checkpoint that the bundle was compiled from."
        )
    if opened.manifest.model.detector is not None:
        source.take_queries(opened.manifest.model.detector.num_queries)
    return VisionLLM(load_pipeline(opened, stages=TorchStages(load_model(source))))
