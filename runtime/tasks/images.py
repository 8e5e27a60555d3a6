"""Pictures that are made: from words, or from a picture and words."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from visionllm_edge.runtime.diffusion.captions import training_caption
from visionllm_edge.runtime.diffusion.image_maker import ImageOptions
from visionllm_edge.runtime.errors import InputError, StoppedError
from visionllm_edge.runtime.events import Event, ProgressEvent
from visionllm_edge.runtime.images import ImageLike
from visionllm_edge.runtime.pipelines.images import make_scripted
from visionllm_edge.runtime.pipelines.requests import check_line
from visionllm_edge.runtime.results import ImageResult
from visionllm_edge.runtime.tasks.base import Stream, TaskBase, last

__all__ = ["ImageTasks", "OnStep"]

OnStep = Callable[[int, int], object]
"""Called with (steps done, all steps); returning False ends the run."""


class ImageTasks(TaskBase):
    """Tasks of the diffusion chains."""

    def generate(
        self,
        prompt: str,
        *,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int | None = None,
        scheduler: str | None = None,
        on_step: OnStep | None = None,
        stream: Stream | None = None,
    ) -> ImageResult:
        """Make a picture of what a caption says.

        Options that are None take what the model comes with.

        Args:
            prompt: the caption, one line; in lower case and without most punctuation it is what
                the model was trained on, and is brought into that form.
            size: (height, width) in pixels, multiples of what the model says.
            steps: of the scheduler; more take longer and show more detail.
            guidance: how strictly the caption is followed; 1 takes half the time.
            seed: the same seed gives the same picture again; None draws one, which the result
                tells.
            scheduler: ``pndm``, ``euler_ancestral``, ``ddim`` or ``dpmsolver++``.
            on_step: called after every call of the UNet with how many are done and how many there
                are; the run ends when it returns False.
            stream: gets the events.

        Raises:
            InputError: an unusable caption or option, or a bundle without the decoder; nothing was
                computed.
            ContextError: the caption does not fit the context.
            StoppedError: ``on_step`` returned False.
        """
        pipeline = self._pipeline
        maker = pipeline.maker("generate")
        caption = training_caption(check_line(prompt, "prompt"))
        if not caption:
            raise InputError(
                f"prompt {prompt!r}: expected words, got punctuation. Say what to show."
            )
        options = ImageOptions(
            size=size, steps=steps, guidance=guidance, seed=seed, scheduler=scheduler
        )
        events = make_scripted(pipeline, "generate", caption, maker.plan(options), None)
        return last(_watched(events, on_step), stream, ImageResult)

    def edit(
        self,
        image: ImageLike | None,
        instruction: str,
        *,
        size: tuple[int, int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        image_guidance: float | None = None,
        seed: int | None = None,
        scheduler: str | None = None,
        on_step: OnStep | None = None,
        stream: Stream | None = None,
    ) -> ImageResult:
        """Change a picture as an instruction says.

        Args:
            image: a path, a Pillow image or an RGB array.
            instruction: one line, for example ``make the red circle blue``.
            size: (height, width) of the new picture in pixels; None takes about the picture's own
                shape with the shorter side that the model was trained at.
            steps: as for :meth:`generate`.
            guidance: how strictly the instruction is followed.
            image_guidance: how closely the picture is kept.
            seed: as for :meth:`generate`.
            scheduler: as for :meth:`generate`.
            on_step: as for :meth:`generate`.
            stream: gets the events.

        Raises:
            InputError: an unusable picture, instruction or option, or a bundle without the
                decoder; nothing was computed.
            ContextError: picture and instruction do not fit the context.
            StoppedError: ``on_step`` returned False.
        """
        pipeline = self._pipeline
        maker = pipeline.maker("edit")
        wanted = check_line(instruction, "instruction").rstrip(".! ")
        if not wanted:
            raise InputError(
                f"instruction {instruction!r}: expected words, got punctuation. Say what to change."
            )
        options = ImageOptions(
            size=size,
            steps=steps,
            guidance=guidance,
            image_guidance=image_guidance,
            seed=seed,
            scheduler=scheduler,
        )
        if image is None:
            raise InputError("edit: expected a picture to edit, got none. Pass an image.")
        picture = pipeline.open(image)
        events = make_scripted(pipeline, "edit", wanted, maker.plan(options, picture.size), picture)
        return last(_watched(events, on_step), stream, ImageResult)


def _watched(events: Iterator[Event], on_step: OnStep | None) -> Iterator[Event]:
    for event in events:
        if (
            isinstance(event, ProgressEvent)
            and on_step is not None
            and on_step(event.step, event.total) is False
        ):
            raise StoppedError(
                f"{event.what}: stopped by the step callback after {event.step} of "
                f"{event.total} steps; there is no picture. Ask again for one."
            )
        yield event
