"""Check a bundle again: its files by hash, its stages against what is known to be right.

Without a checkpoint every stage runs on the golden inputs that the bundle carries and must stay
within the limits that the compile recorded. With the checkpoint all variants are compared with
torch anew, at all sizes, and the whole chain end to end.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from visionllm_edge.export.check_lowered import Golden
from visionllm_edge.export.parity import (
    TensorParity,
    compare_with_limits,
    limits_key,
    require_parity,
)
from visionllm_edge.export.progress import Progress
from visionllm_edge.runtime.backends import StageOptions, load_backend
from visionllm_edge.runtime.backends.base import PRESENT_PREFIX
from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.engines.golden import fitted_inputs
from visionllm_edge.runtime.errors import ConfigError, ParityError
from visionllm_edge.runtime.manifest import FP32, LLAMA, Manifest, StageSpec

if TYPE_CHECKING:
    from visionllm_edge.export.llm.weights import LlmWeights

__all__ = ["StageVerdict", "VerifyReport", "verify_bundle"]

DECODER = "llm_decoder"


@dataclass(frozen=True)
class StageVerdict:
    """How one stage compares: its worst tensor and how many comparisons there were."""

    stage: str
    comparisons: int
    worst: TensorParity

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "stage": self.stage,
            "comparisons": self.comparisons,
            "worst": self.worst.to_dict(),
        }


@dataclass(frozen=True)
class VerifyReport:
    """What was checked; a failed check raises instead.

    Attributes:
        files: how many files were hashed.
        against: `golden files` or `checkpoint`.
        stages: one verdict per stage.
        end_to_end: comparison of the whole chain, with a checkpoint only.
    """

    files: int
    against: str
    stages: tuple[StageVerdict, ...]
    end_to_end: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "files": self.files,
            "against": self.against,
            "stages": [verdict.to_dict() for verdict in self.stages],
            "end_to_end": self.end_to_end,
        }


def verify_bundle(
    path: Path, *, checkpoint: Path | None = None, progress: Progress | None = None
) -> VerifyReport:
    """Hash every file, then compare every stage.

    Args:
        path: the bundle.
        checkpoint: what it was compiled from; needs the exporter's packages.
        progress: gets a step per stage; silent by default.

    Raises:
        BundleError: a file is changed, missing or extra, or there are no golden files.
        ParityError: a stage is wrong, or the bundle came from another checkpoint.
        BackendError: engines, and no device to run them.
        ConfigError: a checkpoint for a bundle of engines.
    """
    progress = progress or Progress(silent=True)
    bundle = Bundle.open(path, verify=True)
    progress.total = 1 + len(bundle.manifest.stages) + (checkpoint is not None)
    progress.step(f"hashed {len(bundle.manifest.files)} files")
    if checkpoint is not None and _holds_engines(bundle.manifest):
        raise ConfigError(
            f"bundle '{bundle.root.name}' holds engines: expected no --checkpoint, got one. "
            "Engines are compared with the golden files; verify the bundle that they were built "
            "from with it."
        )
    if checkpoint is not None:
        return _against_checkpoint(bundle, checkpoint, progress)
    verdicts = []
    for name, spec in bundle.manifest.stages.items():
        verdicts.append(_against_golden(bundle, name, spec))
        progress.step(_line(verdicts[-1]))
    return VerifyReport(len(bundle.manifest.files), "golden files", tuple(verdicts))


def _against_golden(bundle: Bundle, name: str, spec: StageSpec) -> StageVerdict:
    golden = Golden(bundle, name)
    manifest = bundle.manifest
    backend = load_backend(manifest.target.backend)
    ports = spec.ports(name)
    runner = backend.load_stage(
        bundle.stage_model(name, golden.bucket), ports, StageOptions(bundle=bundle)
    )
    # Engines fix the cache to the context and may hold it in half precision.
    capacity = manifest.model.llm.max_positions if _holds_engines(manifest) else None
    inputs = fitted_inputs(ports, golden.inputs, capacity=capacity)
    got = {}
    for output, array in runner.run(inputs).items():
        # The golden file holds the rows of the cache that have a defined value.
        rows = golden.outputs[output].shape[2] if output.startswith(PRESENT_PREFIX) else None
        got[output] = np.array(array if rows is None else array[:, :, :rows])
    precision = str(spec.parity.get("precision", manifest.target.precision))
    limits = golden.limits[limits_key(precision, manifest.target.name)]
    report = compare_with_limits(got, golden.outputs, limits)
    require_parity(name, report)
    return StageVerdict(name, len(report), _worst(report))


def _holds_engines(manifest: Manifest) -> bool:
    return manifest.target.backend != "onnxruntime"


def _against_checkpoint(bundle: Bundle, folder: Path, progress: Progress) -> VerifyReport:
    from visionllm_edge.export.build_stage import check_stage
    from visionllm_edge.export.checkpoint import Checkpoint
    from visionllm_edge.export.end_to_end import compare_end_to_end
    from visionllm_edge.export.llm.hf_folder import VisionLLMWeights
    from visionllm_edge.export.stages import stages_of
    from visionllm_edge.export.streamed_model import open_model

    if bundle.manifest.family == LLAMA:
        return _llm_against_checkpoint(bundle, folder, progress)
    checkpoint = Checkpoint(folder)
    _require_same(bundle, folder, checkpoint.fingerprint())
    if bundle.manifest.model.detector is not None:
        checkpoint.take_queries(bundle.manifest.model.detector.num_queries)
    pair = open_model(checkpoint)
    verdicts = []
    for stage in stages_of(checkpoint.config):
        if stage.name == DECODER:
            verdicts.append(_decoder_verdict(bundle, VisionLLMWeights(checkpoint)))
            progress.step(_line(verdicts[-1]))
            continue
        tensors = []
        spec = bundle.manifest.stages[stage.name]
        for variant in spec.variants:
            checked = check_stage(
                pair,
                stage,
                variant.bucket,
                bundle.file(variant.model),
                None if variant.canonical is None else bundle.file(variant.canonical),
                bundle.manifest.target.name,
                str(spec.parity.get("precision", bundle.manifest.target.precision)),
            )
            tensors += [tensor for report in checked.reports for tensor in report.outputs]
        pair.release()
        verdicts.append(StageVerdict(stage.name, len(tensors), _worst(tensors)))
        progress.step(_line(verdicts[-1]))
    end_to_end = compare_end_to_end(bundle, pair)
    progress.step(f"compared with torch end to end: {end_to_end['summary']}")
    files = len(bundle.manifest.files)
    return VerifyReport(files, "checkpoint", tuple(verdicts), end_to_end)


def _llm_against_checkpoint(bundle: Bundle, path: Path, progress: Progress) -> VerifyReport:
    from visionllm_edge.export.llm.end_to_end import check_language_model
    from visionllm_edge.export.llm.weights import open_llm

    source = open_llm(path)
    _require_same(bundle, path, source.fingerprint())
    verdict = _decoder_verdict(bundle, source)
    progress.step(_line(verdict))
    end_to_end = check_language_model(bundle, source.config)
    progress.step(f"continued a text by the runtime: {end_to_end['summary']}")
    return VerifyReport(len(bundle.manifest.files), "checkpoint", (verdict,), end_to_end)


def _require_same(bundle: Bundle, path: Path, fingerprint: str) -> None:
    expected = bundle.manifest.checkpoint.fingerprint
    if fingerprint != expected:
        raise ParityError(
            f"bundle '{bundle.root.name}' was compiled from another checkpoint: expected "
            f"fingerprint {expected}, '{path.name}' has {fingerprint}. Give the checkpoint it "
            "was compiled from."
        )


def _decoder_verdict(bundle: Bundle, source: LlmWeights) -> StageVerdict:
    """The decoder against the checkpoint's weights; quantised ones against its own, dequantised."""
    from visionllm_edge.export.llm.build_decoder import embed_rows
    from visionllm_edge.export.llm.bundle_weights import BundleWeights
    from visionllm_edge.export.llm.decoder_parity import check_graph, decoder_truth
    from visionllm_edge.export.llm.decoder_weights import DecoderWeights, DenseWeights

    manifest = bundle.manifest
    llm, spec = manifest.model.llm, manifest.stages[DECODER]
    quantized = llm.precision != FP32
    weights: DecoderWeights = BundleWeights(bundle) if quantized else DenseWeights(source)
    truth = decoder_truth(
        weights,
        source.config,
        embed_rows(source, half=quantized),
        quantized=quantized,
        cache=llm.cache,
        cache_scales=BundleWeights(bundle).cache_scales() if llm.cache == "int8" else None,
        halves=False,
    )
    with tempfile.TemporaryDirectory(prefix="visionllm-edge-") as scratch:
        parity = check_graph(
            bundle.stage_model(DECODER),
            spec.ports(DECODER),
            truth,
            target=manifest.target.name,
            scratch=Path(scratch),
        )
    reports = [*parity.shipped, *parity.exact]
    tensors = [tensor for report in reports for tensor in report.outputs]
    return StageVerdict(DECODER, len(tensors), _worst(tensors))


def _worst(report: list[TensorParity]) -> TensorParity:
    return max(report, key=lambda tensor: tensor.error / max(tensor.limit, 1e-300))


def _line(verdict: StageVerdict) -> str:
    worst = verdict.worst
    return (
        f"{verdict.stage}: {verdict.comparisons} tensors, worst {worst.name} "
        f"{worst.error:.2g} (limit {worst.limit:.2g})"
    )
