"""The schedulers by name."""

from __future__ import annotations

from visionllm_edge.runtime.decoder_specs import SCHEDULERS, SchedulerSpec
from visionllm_edge.runtime.diffusion.ddim import DDIM
from visionllm_edge.runtime.diffusion.dpm_solver import DPMSolver
from visionllm_edge.runtime.diffusion.euler_ancestral import EulerAncestral
from visionllm_edge.runtime.diffusion.noise_schedule import NoiseSchedule
from visionllm_edge.runtime.diffusion.pndm import PNDM
from visionllm_edge.runtime.diffusion.scheduler import Scheduler
from visionllm_edge.runtime.errors import InputError

__all__ = ["make_scheduler"]


def make_scheduler(spec: SchedulerSpec, steps: int, *, kind: str | None = None) -> Scheduler:
    """A scheduler for one run.

    Args:
        spec: what the model was trained with.
        steps: how many.
        kind: one of ``decoder_specs.SCHEDULERS``; None takes the one that the model comes with.

    Raises:
        InputError: an unknown kind, or a number of steps that it cannot run.
    """
    schedule = NoiseSchedule(spec.train_steps, spec.beta_start, spec.beta_end, spec.beta_schedule)
    kind = spec.kind if kind is None else kind
    if kind == "euler_ancestral":
        return EulerAncestral(schedule, steps)
    if kind == "dpmsolver++":
        return DPMSolver(schedule, steps)
    if kind == "ddim":
        return DDIM(
            schedule,
            steps,
            steps_offset=spec.steps_offset,
            set_alpha_to_one=spec.set_alpha_to_one,
        )
    if kind == "pndm":
        return PNDM(
            schedule,
            steps,
            steps_offset=spec.steps_offset,
            set_alpha_to_one=spec.set_alpha_to_one,
            skip_prk_steps=spec.skip_prk_steps,
        )
    raise InputError(
        f"scheduler: expected one of {', '.join(SCHEDULERS)}, got {kind!r}. Change the option."
    )
