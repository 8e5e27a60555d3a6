"""What every scheduler offers: from a picture of pure noise to a picture, one UNet call at a time.

A scheduler object belongs to one run. Its calls are made in order, ``call`` counting from 0:

    sample = noise * scheduler.initial_scale
    for call, timestep in enumerate(scheduler.timesteps):
        predicted = unet(scheduler.model_input(sample, call), timestep)
        sample = scheduler.step(sample, predicted, call, draw)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["DrawNoise", "Latents", "Scheduler"]

Latents = NDArray[np.float32]

DrawNoise = Callable[[], Latents]
"""Standard normal noise of the sample's shape, new at each call."""


class Scheduler(Protocol):
    """One run of a sampler. Arrays are float32 ``[B,C,h,w]`` and never changed in place."""

    @property
    def timesteps(self) -> tuple[float, ...]:
        """What the UNet is told, one for each call; there may be more calls than steps."""
        ...

    @property
    def initial_scale(self) -> float:
        """Standard deviation of the noise that a run starts from."""
        ...

    def model_input(self, sample: Latents, call: int) -> Latents:
        """The sample as the UNet expects it."""
        ...

    def step(self, sample: Latents, predicted: Latents, call: int, draw: DrawNoise) -> Latents:
        """The sample after this call.

        Args:
            sample: before it.
            predicted: the noise that the UNet finds in it.
            call: which call, in order from 0.
            draw: gives fresh noise, for samplers that add some.
        """
        ...
