"""The precision of every stage of a build: the user's choices, checked before anything is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from visionllm_edge.export.calibration_inputs import CALIBRATED
from visionllm_edge.runtime.backends.base import PAST_PREFIX
from visionllm_edge.runtime.errors import ConfigError
from visionllm_edge.runtime.ports import StagePorts
from visionllm_edge.runtime.targets import QUANTIZED, Target

__all__ = ["precisions_for", "stage_precisions"]

_ONLY_BY_NAME = frozenset({"det_decoder", "det_masks"})
"""On a processor eight bits are a twentieth of a detector's time in these two, and a decoder that
chooses between queries nearly alike makes large errors of small ones; asked for all stages, they
stay as they are. An engine's layers gain more, and its ranges are calibrated."""


def precisions_for(values: Sequence[str]) -> tuple[str | None, dict[str, str]]:
    """Read `fp16` and `STAGE=fp32` as the command line takes them.

    Raises:
        ConfigError: two precisions for the same thing.
    """
    common: str | None = None
    own: dict[str, str] = {}
    for value in values:
        stage, given, precision = value.rpartition("=")
        if (stage in own) if given else (common is not None):
            raise ConfigError(f"precision '{value}': given twice for the same stage. Keep one.")
        if given:
            own[stage] = precision
        else:
            common = precision
    return common, own


def stage_precisions(
    stages: Mapping[str, StagePorts], target: Target, common: str | None, own: Mapping[str, str]
) -> dict[str, str]:
    """Stage -> precision.

    Args:
        stages: name -> its ends.
        target: the target's default holds where nothing was asked.
        common: asked for all stages.
        own: stage -> asked for this one.

    Raises:
        ConfigError: an unknown stage, a precision that the target lacks, or int8 or fp8 for the
            language decoder, or by name for a stage that has no calibration. Asked for all stages,
            such a stage has the target's default; on a processor so do the object decoder and its
            masks.
    """
    unknown = sorted(own.keys() - stages.keys())
    if unknown:
        raise ConfigError(
            f"precision: no stage '{unknown[0]}'; the bundle has {', '.join(stages)}."
        )
    out = {}
    for name, ports in stages.items():
        precision = target.resolve_precision(own.get(name, common))
        cached = any(port.name.startswith(PAST_PREFIX) for port in ports.inputs)
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
                    f"stage '{name}': precision expected one of {', '.join(target.precisions)}, "
                    f"got {precision}, which only {', '.join(sorted(CALIBRATED))} can be in."
                )
            precision = target.precision
        by_name = target.backend == "onnxruntime" and name in _ONLY_BY_NAME
        if precision in QUANTIZED and by_name and name not in own:
            precision = target.precision
        out[name] = precision
    return out
