"""Words about a picture: captions, questions, conversations."""

from __future__ import annotations

from collections.abc import Sequence

from visionllm_edge.runtime.diffusion.image_maker import ImageOptions
from visionllm_edge.runtime.images import ImageLike, load_image
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.pipelines.chat import ChatSession
from visionllm_edge.runtime.pipelines.dispatch import Wanted
from visionllm_edge.runtime.pipelines.free import answer_text
from visionllm_edge.runtime.pipelines.pose import PoseSelecting
from visionllm_edge.runtime.pipelines.requests import check_question
from visionllm_edge.runtime.prompts import CAPTION_QUESTIONS, SHORT_ANSWER
from visionllm_edge.runtime.results import TextResult
from visionllm_edge.runtime.tasks.base import Stream, TaskBase, last, selecting

__all__ = ["LanguageTasks"]


class LanguageTasks(TaskBase):
    """Tasks of the language model."""

    def caption(
        self,
        image: ImageLike,
        *,
        config: GenerationConfig | None = None,
        stream: Stream | None = None,
    ) -> TextResult:
        """Describe a picture in one sentence.

        Raises:
            InputError: an unusable image.
        """
        return self._answer(image, CAPTION_QUESTIONS[0], None, config, stream)

    def vqa(
        self,
        image: ImageLike,
        question: str,
        *,
        short: bool = True,
        choices: Sequence[str] | None = None,
        config: GenerationConfig | None = None,
        stream: Stream | None = None,
    ) -> TextResult:
        """Answer a question about a picture.

        Args:
            image: a path, a Pillow image or an RGB array.
            question: plain text.
            short: ask for a short answer, as the benchmarks do.
            choices: the only answers that are allowed, for example ``["yes", "no"]``.
            config: generation options.
            stream: gets the events.

        Raises:
            InputError: an unusable image, no question, or unusable choices.
            ContextError: the question does not fit the context; nothing was computed.
        """
        question = check_question(question)
        prompt = f"{question} {SHORT_ANSWER}" if short else question
        return self._answer(image, prompt, question, config, stream, choices)

    def vqa_many(
        self,
        image: ImageLike,
        questions: Sequence[str],
        *,
        short: bool = True,
        choices: Sequence[str] | None = None,
        config: GenerationConfig | None = None,
    ) -> list[TextResult]:
        """Answer several questions about one picture, each as if it were the only one.

        Picture and prompt up to the question are computed once; the cache goes back to there for
        the next question. The questions are answered one after the other, so the weights are read
        once per token of every answer.

        Args:
            image: a path, a Pillow image or an RGB array.
            questions: plain texts.
            short: as in :meth:`vqa`.
            choices: as in :meth:`vqa`, the same for every question.
            config: generation options of every answer.

        Raises:
            InputError: as :meth:`vqa`, before anything is computed.
            ContextError: as :meth:`vqa`, for the first question that does not fit.
        """
        for question in questions:
            check_question(question)
        picture = load_image(image)
        return [
            self.vqa(picture, question, short=short, choices=choices, config=config)
            for question in questions
        ]

    def chat(
        self,
        image: ImageLike | None = None,
        *,
        config: GenerationConfig | None = None,
        threshold: float = 0.3,
        top_k: int = 100,
        masks: bool = False,
        poses: PoseSelecting | None = None,
        images: ImageOptions | None = None,
    ) -> ChatSession:
        """Start a conversation, usually about a picture.

        Whatever routing tokens an answer holds are answered: objects, poses, pictures.

        Args:
            image: a path, a Pillow image or an RGB array; None to talk without one.
            config: generation options of every turn.
            threshold: smallest score of detections.
            top_k: how many detections at most.
            masks: also give masks.
            poses: which poses are wanted.
            images: how pictures are made.

        Raises:
            InputError: an unusable image or option.
        """
        wanted = Wanted(
            selecting(threshold, top_k, masks), poses or PoseSelecting(), images or ImageOptions()
        )
        return ChatSession(
            self._pipeline,
            self._pipeline.open(image) if image is not None else None,
            config=config or GenerationConfig(),
            wanted=wanted,
        )

    def _answer(
        self,
        image: ImageLike,
        prompt: str,
        question: str | None,
        config: GenerationConfig | None,
        stream: Stream | None,
        choices: Sequence[str] | None = None,
    ) -> TextResult:
        pipeline = self._pipeline
        events = answer_text(
            pipeline,
            pipeline.open(image),
            prompt,
            config or GenerationConfig(),
            question=question,
            choices=choices,
        )
        return last(events, stream, TextResult)
