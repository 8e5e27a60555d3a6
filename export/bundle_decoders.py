"""What a bundle of VisionLLM v2 says and ships for the decoders behind the language model."""

from __future__ import annotations

from visionllm_edge.export.components.model import VisionLLM
from visionllm_edge.export.config import VisionLLMConfig
from visionllm_edge.runtime.bundle import BundleWriter
from visionllm_edge.runtime.manifest import DetectorSpec, PoseSpec, SuperlinkSpec

__all__ = ["detector_spec", "pose_spec", "superlink_specs", "write_superlink_tables"]

_DIVISOR = 32
# The detector's class axis, and the keypoint decoder's two.
_MAX_OBJECTS = 100


def detector_spec(config: VisionLLMConfig) -> DetectorSpec:
    """Sizes of the object decoder."""
    deployment = config.deployment
    return DetectorSpec(
        buckets=deployment.det_buckets,
        shortest_edge=deployment.det_shortest_edge,
        longest_edge=deployment.det_longest_edge,
        divisor=_DIVISOR,
        max_text_len=config.detector.max_text_len,
        num_queries=config.detector.queries,
    )


def pose_spec(config: VisionLLMConfig) -> PoseSpec | None:
    """Sizes of the keypoint decoder, if the checkpoint has one."""
    if config.pose is None:
        return None
    deployment = config.deployment
    return PoseSpec(
        buckets=deployment.pose_buckets,
        shortest_edge=deployment.pose_shortest_edge,
        longest_edge=deployment.pose_longest_edge,
        divisor=_DIVISOR,
        max_objects=_MAX_OBJECTS,
        max_keypoints=config.pose.max_keypoints,
        num_instances=config.pose.num_instances,
    )


def superlink_specs(config: VisionLLMConfig) -> dict[str, SuperlinkSpec]:
    """Every routing token; a table and a decoder where the checkpoint has the decoder."""
    rows, rows_gen = config.num_embs, config.num_embs_gen
    entries = {
        "det": (("[DET]", "[SEG]", "[GRD]"), rows, "detector", True),
        "pose": (("[POSE]",), rows, "pose", config.pose is not None),
        "gen": (("[GEN]",), rows_gen, "generate", config.generation is not None),
        "edit": (("[EDIT]",), rows_gen, "edit", config.editing is not None),
    }
    return {
        name: SuperlinkSpec(tokens, count, _table(name), decoder)
        if there
        else SuperlinkSpec(tokens, count)
        for name, (tokens, count, decoder, there) in entries.items()
    }


def write_superlink_tables(model: VisionLLM, writer: BundleWriter) -> None:
    """Write the tables that :func:`superlink_specs` names."""
    for name, spec in superlink_specs(model.config).items():
        if spec.table is not None:
            table = model.get_parameter(f"emb_embeddings_{name}.weight")
            writer.add_array(spec.table, table.detach().float().numpy())


def _table(name: str) -> str:
    return f"tables/superlink_{name}.npy"
