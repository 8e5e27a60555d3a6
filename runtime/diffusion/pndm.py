"""PNDM in the form that Stable Diffusion uses: linear multistep over the last four predictions.

The second call visits the second timestep and the third visits it again, so a run of n steps calls
the UNet n + 1 times (once for one step). Without ``skip_prk_steps`` the first three steps are
Runge-Kutta steps of four calls each, and the multistep part begins with a full history.

Source: "Pseudo Numerical Methods for Diffusion Models on Manifolds" (arXiv 2202.09778), equations
9, 12 and 13; order of calls as in diffusers' ``PNDMScheduler``.
"""

from __future__ import annotations

import math
from itertools import pairwise

from visionllm_edge.runtime.diffusion.noise_schedule import NoiseSchedule, leading_timesteps
from visionllm_edge.runtime.diffusion.scheduler import DrawNoise, Latents
from visionllm_edge.runtime.errors import InputError

__all__ = ["PNDM"]

_WEIGHTS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Adams-Bashforth weights for one to four predictions, the newest first."""

_RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)
_RUNGE_KUTTA_STEPS = 3


class PNDM:
    """Deterministic.

    Args:
        schedule: variances of training.
        steps: timesteps that are visited.
        steps_offset: added to every timestep.
        set_alpha_to_one: as for DDIM.
        skip_prk_steps: begin with multistep calls of growing order, as Stable Diffusion does.
    """

    initial_scale = 1.0

    def __init__(
        self,
        schedule: NoiseSchedule,
        steps: int,
        *,
        steps_offset: int,
        set_alpha_to_one: bool,
        skip_prk_steps: bool = True,
    ) -> None:
        """Choose the timesteps.

        Raises:
            InputError: a number of steps that cannot be run.
        """
        visited = leading_timesteps(schedule, steps, steps_offset)
        self._schedule = schedule
        self._distance = schedule.train_steps // steps
        self._end = 1.0 if set_alpha_to_one else float(schedule.kept[0])
        self._history: list[Latents] = []
        self._start: Latents | None = None
        self._slope: Latents | None = None
        self._prk_calls = 0
        if skip_prk_steps:
            calls = visited[:2] + visited[1:]
        else:
            if steps <= _RUNGE_KUTTA_STEPS:
                raise InputError(
                    f"steps: expected more than {_RUNGE_KUTTA_STEPS} for PNDM with Runge-Kutta "
                    f"steps, got {steps}. Ask for more steps or take another scheduler."
                )
            half = self._distance // 2
            first = [
                timestep
                for here, after in pairwise(visited[: _RUNGE_KUTTA_STEPS + 1])
                for timestep in (here, after + half, after + half, after)
            ]
            self._prk_calls = len(first)
            calls = first + visited[_RUNGE_KUTTA_STEPS:]
        self._calls = calls
        self.timesteps = tuple(float(t) for t in calls)

    def model_input(self, sample: Latents, call: int) -> Latents:
        """As it is."""
        return sample

    def step(self, sample: Latents, predicted: Latents, call: int, draw: DrawNoise) -> Latents:
        """Go on along the mean of the last predictions."""
        if call < self._prk_calls:
            return self._runge_kutta(sample, predicted, call)
        timestep = self._calls[call]
        if call == 1 and not self._prk_calls:
            # The second call looked one step ahead: do the first step again with the mean of both.
            assert self._start is not None, "calls are made in order"
            return self._moved(
                self._start,
                (predicted + self._history[-1]) * 0.5,
                timestep + self._distance,
                timestep,
            )
        if call == 0:
            self._start = sample
        self._history = [*self._history[-3:], predicted]
        weights = _WEIGHTS[len(self._history) - 1]
        mean = predicted * weights[0]
        for weight, past in zip(weights[1:], self._history[-2::-1], strict=True):
            mean = mean + past * weight
        return self._moved(sample, mean, timestep, timestep - self._distance)

    def _runge_kutta(self, sample: Latents, predicted: Latents, call: int) -> Latents:
        part, timestep = call % 4, self._calls[call]
        if part == 0:
            self._start = sample
            self._history.append(predicted)
            self._slope = predicted * 0.0
        assert self._start is not None and self._slope is not None, "calls are made in order"
        self._slope = self._slope + _RUNGE_KUTTA[part] * predicted
        # The slopes are taken at the start, twice in the middle, and at the end of the step.
        after = timestep if part % 2 else timestep - self._distance // 2
        slope = self._slope if part == 3 else predicted
        return self._moved(self._start, slope, self._calls[call - part], after)

    def _moved(self, sample: Latents, slope: Latents, timestep: int, after: int) -> Latents:
        """Equation 9: the sample at ``timestep`` moved to ``after``."""
        kept = float(self._schedule.kept[timestep])
        kept_after = float(self._schedule.kept[after]) if after >= 0 else self._end
        divisor = kept * math.sqrt(1.0 - kept_after) + math.sqrt(kept * (1.0 - kept) * kept_after)
        return sample * math.sqrt(kept_after / kept) - slope * ((kept_after - kept) / divisor)
