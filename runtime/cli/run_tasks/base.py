"""What a task of ``visionllm-edge run`` is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.model import Stream, VisionLLM
from visionllm_edge.runtime.results import Result

__all__ = ["Option", "Request", "RunTask"]

Option = Callable[[Any], Any]
"""A ``click.option(...)``."""


@dataclass(frozen=True)
class Request:
    """What the command line asks.

    Attributes:
        pixels: the picture, uint8 [H,W,3]; None for a task that takes none.
        config: generation options.
        stream: gets the events.
        given: every option of every task by its parameter's name, defaults included.
    """

    pixels: NDArray[np.uint8] | None
    config: GenerationConfig
    stream: Stream
    given: Mapping[str, Any]

    def threshold(self, default: float) -> float:
        """The score below which nothing is taken; tasks differ in their default."""
        given = self.given["threshold"]
        return default if given is None else float(given)

    @property
    def picture(self) -> NDArray[np.uint8]:
        """The picture of a task that needs one."""
        assert self.pixels is not None, "the command has asked for it"
        return self.pixels


@dataclass(frozen=True)
class RunTask:
    """One entry of the task table.

    Attributes:
        name: of ``--task``.
        call: asks the model; may raise any error of ours.
        needs: parameters that must be given.
        takes: parameters that may be given; what stands in no task's list belongs to all.
        image: ``needed``, ``optional`` or ``none``.
        saves: whether its picture is the answer, which is lost without ``--save``.
        check: refuses options that do not go together, before a bundle is loaded.
    """

    name: str
    call: Callable[[VisionLLM, Request], Result]
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    image: str = "needed"
    saves: bool = False
    check: Callable[[Mapping[str, Any]], None] | None = None
