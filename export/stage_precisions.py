"""The precision of every stage of a build: the user's choices, checked before anything is done."""

from __future__ import annotations

from collections.abc import Mapping

from visionllm_edge.export.calibration_inputs import CALIBRATED
from visionllm_edge.runtime.backends.base import PAST_PREFIX
from visionllm_edge.runtime.errors import ConfigError
from visionllm_edge.runtime.manifest import Manifest
from visionllm_edge.runtime.targets import QUANTIZED, Target

__all__ = ["stage_precisions"]


def stage_precisions(
    manifest: Manifest, target: Target, common: str | None, own: Mapping[str, str]
) -> dict[str, str]:
    """Stage -> precision.

    Args:
        manifest: of the bundle.
        target: the target's default holds where nothing was asked.
        common: asked for all stages.
        own: stage -> asked for this one.

    Raises:
        ConfigError: an unknown stage, a precision that the target lacks, or int8 or fp8 for the
            language decoder, or by name for a stage that has no calibration. Asked for all stages,
            such a stage has the target's default.
    """
    stages = manifest.stages
    unknown = sorted(own.keys() - stages.keys())
    if unknown:
        raise ConfigError(
            f"precision: no stage '{unknown[0]}'; the bundle has {', '.join(stages)}."
        )
    out = {}
    for name, spec in stages.items():
        precision = target.resolve_precision(own.get(name, common))
        cached = any(port.name.startswith(PAST_PREFIX) for port in spec.ports(name).inputs)
        if cached and precision in QUANTIZED:
            raise ConfigError(
                f"stage '{name}': precision expected one of {', '.join(target.precisions)}, got "
                f"{precision}, which also rounds activations; a language decoder takes eight bits "
                f"in its weights only, which this version does not build. Give it its own: "
                f"--precision {name}={target.precision}"
            )
        if precision in QUANTIZED and name not in CALIBRATED:
            if name in own:
                raise ConfigError(
                    f"stage '{name}': precision expected one of fp32, fp16 or bf16, got "
                    f"{precision}, for which only {', '.join(sorted(CALIBRATED))} are calibrated."
                )
            precision = target.precision
        out[name] = precision
    return out
