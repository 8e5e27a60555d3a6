"""A language model alone: prompt in, text out.

The same decoder session serves every prompt, so a prompt that begins as the one before it costs its
new words only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from visionllm_edge.runtime.errors import BundleError, InputError
from visionllm_edge.runtime.events import DoneEvent, Event, TokenEvent
from visionllm_edge.runtime.llm.answer_format import AnswerFormat
from visionllm_edge.runtime.llm.generate import Generation
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.llm.sequence import TokenSequence
from visionllm_edge.runtime.llm.session import DecoderSession
from visionllm_edge.runtime.pipelines.conversation import Conversation
from visionllm_edge.runtime.pipelines.requests import check_question
from visionllm_edge.runtime.prompts import (
    TEMPLATES,
    Segment,
    Text,
    Turn,
    conversation,
    end_of_answer,
    follow_up,
)
from visionllm_edge.runtime.results import TextResult
from visionllm_edge.runtime.tokenizer import Tokenizer

__all__ = ["TextChat", "TextPipeline"]

# No id of a text: a sequence without pictures has no image rows.
_NO_PATCH = -1


class TextPipeline:
    """The loaded parts of a language model.

    Args:
        tokenizer: of the model.
        session: the decoder session.
        template: conversation template.
        system: what the model is told first; None for the template's own.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        session: DecoderSession,
        template: str,
        system: str | None = None,
    ) -> None:
        """Resolve the control tokens.

        Raises:
            BundleError: a template that this version does not know.
        """
        if template not in TEMPLATES:
            raise BundleError(
                f"prompt template: expected one of {', '.join(TEMPLATES)}, got {template!r}. "
                "Use the version of visionllm-edge that compiled the bundle."
            )
        self.tokenizer = tokenizer
        self.session = session
        self.template = template
        self.system = system
        # A chat model may also end with the end of text that it was trained on before.
        self.ends = frozenset({tokenizer.eos, tokenizer.control_id(end_of_answer(template).name)})
        self.suppressed = frozenset(tokenizer.control_ids.values()) - self.ends

    def conversation(self, turns: Sequence[Turn], system: str | None = None) -> TokenSequence:
        """The sequence of a conversation whose last turn is open.

        Args:
            turns: questions and answers.
            system: what the model is told first; None for what the bundle says.

        Raises:
            ContextError: it does not fit; nothing was computed.
        """
        told = self.system if system is None else system
        return self.extend(
            self._empty(), conversation(turns, image=False, template=self.template, system=told)
        )

    def bare(self, text: str) -> TokenSequence:
        """The sequence of a text that the model goes on writing.

        Raises:
            ContextError: it does not fit; nothing was computed.
            InputError: no text.
        """
        return self.extend(self._empty(), (Text(text),))

    def extend(self, sequence: TokenSequence, segments: Sequence[Segment]) -> TokenSequence:
        """Add segments to a sequence.

        Raises:
            ContextError: it does not fit; the sequence is as it was.
        """
        ids = self.tokenizer.encode(segments, bos=not sequence.ids)
        if not sequence.ids and not ids:
            raise InputError("prompt: expected some text, got none. Write something.")
        self.session.require(len(sequence) + len(ids) + 1)
        sequence.append(ids)
        return sequence

    def write(
        self,
        sequence: TokenSequence,
        config: GenerationConfig,
        *,
        form: AnswerFormat | None = None,
        question: str | None = None,
        continues: bool = False,
    ) -> Iterator[Event]:
        """Generate an answer, which extends ``sequence`` on the way.

        Args:
            sequence: the prompt.
            config: generation options.
            form: the only answers that are allowed.
            question: what was asked, for the result.
            continues: the answer goes on with the prompt's text; else white space around it is
                dropped from the result.

        Raises:
            ContextError: no room for a single token, or for the longest answer of a format.
        """
        generation = Generation(
            self.session,
            sequence,
            self.tokenizer,
            config,
            suppressed=self.suppressed,
            form=form,
            ends=self.ends,
            continues=continues,
        )
        return self._events(generation, question, strip=not continues)

    def _events(self, generation: Generation, question: str | None, strip: bool) -> Iterator[Event]:
        text, token = "", self.tokenizer.eos
        for step in generation:
            token = step.token
            text += step.text
            yield TokenEvent(step.text, token)
        if generation.tail:
            text += generation.tail
            yield TokenEvent(generation.tail, token)
        answer = text.strip() if strip else text
        yield DoneEvent(TextResult(answer, question, generation.finish_reason))

    def _empty(self) -> TokenSequence:
        return TokenSequence(links={}, names={}, im_patch=_NO_PATCH)


class TextChat(Conversation[TextResult]):
    """Turns of one conversation with a language model.

    Args:
        pipeline: the model.
        config: generation options of every turn.
        system: what the model is told first; None for what the bundle says.
    """

    def __init__(
        self, pipeline: TextPipeline, *, config: GenerationConfig, system: str | None = None
    ) -> None:
        """Start without history; nothing is computed yet."""
        super().__init__(config)
        self._pipeline = pipeline
        self._system = system

    def stream(self, text: str, *, config: GenerationConfig | None = None) -> Iterator[Event]:
        """See `Conversation`."""
        question = check_question(text)
        pipeline = self._pipeline
        if self._sequence is None:
            sequence = pipeline.conversation((Turn(question),), self._system)
        else:
            sequence = pipeline.extend(
                self._sequence.copy(), follow_up(question, pipeline.template)
            )
        events = pipeline.write(sequence, config or self._config, question=question)
        return self._turn(question, sequence, events)

    def _turn(
        self, question: str, sequence: TokenSequence, events: Iterator[Event]
    ) -> Iterator[Event]:
        for event in events:
            if isinstance(event, DoneEvent):
                assert isinstance(event.result, TextResult)
                event = self._enter(question, sequence, event.result)
            yield event
