"""How much noise a picture carries at each timestep of training, and which timesteps a run visits.

Everything is computed in float64 and given out as Python floats: a coefficient then never widens a
float32 picture, and it is the same on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.errors import InputError

__all__ = ["NoiseSchedule", "check_steps", "leading_timesteps", "linspace_timesteps"]


@dataclass(frozen=True)
class NoiseSchedule:
    """The variances that the UNet was trained with.

    Attributes:
        train_steps: number of timesteps in training.
        beta_start: variance added at timestep 0.
        beta_end: variance added at the last timestep.
        beta_schedule: ``linear``: the variances are evenly spaced; ``scaled_linear``: their square
            roots are.
        kept: float64 ``[train_steps]``, the part of a picture's variance that is left at each
            timestep (the cumulative product of 1 - beta).
    """

    train_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    kept: NDArray[np.float64] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Compute the cumulative product.

        Raises:
            InputError: an unknown kind of schedule, or variances that are none.
        """
        if self.train_steps < 1 or not 0.0 < self.beta_start <= self.beta_end < 1.0:
            raise InputError(
                "noise schedule: expected at least 1 step and 0 < beta_start <= beta_end < 1, got "
                f"{self.train_steps} steps, {self.beta_start} and {self.beta_end}. Compile the "
                "checkpoint again with its own scheduler settings."
            )
        if self.beta_schedule == "linear":
            betas = np.linspace(self.beta_start, self.beta_end, self.train_steps)
        elif self.beta_schedule == "scaled_linear":
            ends = math.sqrt(self.beta_start), math.sqrt(self.beta_end)
            betas = np.linspace(*ends, self.train_steps) ** 2
        else:
            raise InputError(
                "noise schedule: beta_schedule expected linear or scaled_linear, got "
                f"{self.beta_schedule!r}. Compile the checkpoint again with one of them."
            )
        object.__setattr__(self, "kept", np.cumprod(1.0 - betas))

    def sigmas(self, timesteps: NDArray[np.float64]) -> list[float]:
        """Noise per unit of picture (standard deviations), between two timesteps interpolated."""
        sigmas = np.sqrt((1.0 - self.kept) / self.kept)
        return [float(s) for s in np.interp(timesteps, np.arange(self.train_steps), sigmas)]


def leading_timesteps(schedule: NoiseSchedule, steps: int, offset: int) -> list[int]:
    """Whole timesteps at equal distances from 0, moved up by an offset, the noisiest first.

    Raises:
        InputError: fewer than one step, or more than the schedule has room for.
    """
    check_steps(steps, schedule.train_steps)
    distance = schedule.train_steps // steps
    first = (steps - 1) * distance + offset
    if first >= schedule.train_steps:
        raise InputError(
            f"steps: expected fewer than {schedule.train_steps} with an offset of {offset}, got "
            f"{steps}. Ask for fewer steps."
        )
    return [first - i * distance for i in range(steps)]


def linspace_timesteps(schedule: NoiseSchedule, points: int) -> NDArray[np.float64]:
    """Timesteps from the last one to 0, evenly spaced, not rounded, the noisiest first."""
    return np.linspace(0.0, schedule.train_steps - 1.0, points)[::-1]


def check_steps(steps: int, limit: int) -> None:
    """Refuse a number of steps that no timesteps can be chosen for.

    Raises:
        InputError: fewer than one, or more than the limit.
    """
    if not 1 <= steps <= limit:
        raise InputError(f"steps: expected 1 to {limit}, got {steps}. Change the option.")
