"""The public face of a bundle that holds a language model alone.

    model = LanguageModel.load("bundle")
    print(model.generate("Why is the sky blue?").text)

``stream`` is a function that gets the typed events as they happen. A model is for one thread at a
time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence

from visionllm_edge.runtime.bundle import Bundle
from visionllm_edge.runtime.errors import InputError
from visionllm_edge.runtime.events import DoneEvent, Event
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.pipelines.formats import choices_format, with_room
from visionllm_edge.runtime.pipelines.loading import LoadOptions, load_text_pipeline
from visionllm_edge.runtime.pipelines.requests import check_question
from visionllm_edge.runtime.pipelines.text import TextChat, TextPipeline
from visionllm_edge.runtime.prompts import Text, Turn
from visionllm_edge.runtime.results import TextResult

__all__ = ["LanguageModel", "Message"]

Message = Mapping[str, str]
"""``{"role": "user", "content": "..."}``; roles are system, user and assistant."""


class LanguageModel:
    """A language model that is ready to write. Made by :meth:`load`.

    A prompt that begins as an earlier one reuses what was computed for it.
    """

    def __init__(self, pipeline: TextPipeline) -> None:
        """Take a pipeline; users call :meth:`load`."""
        self._pipeline = pipeline

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        verify: bool = True,
        context: int | None = None,
    ) -> LanguageModel:
        """Load a bundle.

        Args:
            path: the bundle's folder.
            threads: for each operator; None leaves it to the backend.
            verify: hash every file first.
            context: positions that a conversation may have; None for all that the model has. A
                smaller context takes less memory.

        Raises:
            BundleError: not a bundle of a language model, or not as it was compiled.
            BackendError: its backend cannot load it.
            MemoryLimitError: it needs more memory than the machine has free.
        """
        options = LoadOptions(threads=threads, context=context)
        return cls.from_bundle(Bundle.open(path, verify=verify), options)

    @classmethod
    def from_bundle(cls, bundle: Bundle, options: LoadOptions | None = None) -> LanguageModel:
        """As :meth:`load`, of a bundle that is open already."""
        return cls(load_text_pipeline(bundle, options or LoadOptions()))

    @property
    def context(self) -> int:
        """Positions that a conversation may have."""
        return self._pipeline.session.capacity

    def generate(
        self,
        prompt: str | Sequence[Message],
        *,
        raw: bool = False,
        choices: Sequence[str] | None = None,
        config: GenerationConfig | None = None,
        stream: Callable[[Event], object] | None = None,
    ) -> TextResult:
        """Answer a prompt.

        Args:
            prompt: a question, or the messages of a conversation that ends with the user's.
            raw: go on writing the text itself; no conversation template is put around it, and
                white space at the ends of the answer is kept.
            choices: the only answers that are allowed.
            config: generation options.
            stream: gets the events.

        Raises:
            InputError: no prompt, messages in another order, or unusable choices.
            ContextError: the prompt does not fit the context; nothing was computed.
        """
        pipeline = self._pipeline
        if raw:
            if not isinstance(prompt, str):
                raise InputError("raw: expected a text as prompt, got messages. Leave raw out.")
            sequence, question = pipeline.bare(prompt), prompt
        elif isinstance(prompt, str):
            question = check_question(prompt)
            sequence = pipeline.conversation((Turn(question),))
        else:
            system, turns = turns_from_messages(prompt)
            asked = turns[-1].question
            assert isinstance(asked, str), "messages are plain text"
            sequence, question = pipeline.conversation(turns, system), asked
        form = None
        if choices is not None:
            form = choices_format(
                pipeline.tokenizer,
                choices,
                template=pipeline.template,
                prompt=question if raw or pipeline.template == "plain" else None,
            )
        config = with_room(config or GenerationConfig(), form)
        events = pipeline.write(sequence, config, form=form, question=question, continues=raw)
        return _last(events, stream)

    def generate_many(
        self,
        prompts: Sequence[str],
        *,
        choices: Sequence[str] | None = None,
        config: GenerationConfig | None = None,
    ) -> list[TextResult]:
        """Answer several prompts, best sorted so that neighbours begin alike.

        The prompts are answered one after the other: what two neighbours have in common at the
        beginning is computed once, and the weights are read once per token of every answer.

        Raises:
            InputError: as :meth:`generate`.
            ContextError: as :meth:`generate`, for the first prompt that does not fit.
        """
        return [self.generate(prompt, choices=choices, config=config) for prompt in prompts]

    def chat(
        self, *, config: GenerationConfig | None = None, system: str | None = None
    ) -> TextChat:
        """Start a conversation.

        Args:
            config: generation options of every turn.
            system: what the model is told first; None for what the bundle says.
        """
        return TextChat(self._pipeline, config=config or GenerationConfig(), system=system)


def turns_from_messages(messages: Sequence[Message]) -> tuple[str | None, tuple[Turn, ...]]:
    """System text and turns of a list of messages.

    Raises:
        InputError: an unknown role, or another order than system, user, assistant, user, ...
    """
    system: str | None = None
    rest = list(messages)
    for message in rest:
        if set(message) != {"role", "content"} or not isinstance(message["content"], str):
            raise InputError(
                f"message: expected the texts 'role' and 'content', got {dict(message)!r}. "
                "Change the message."
            )
    if rest and rest[0]["role"] == "system":
        system = rest.pop(0)["content"]
    roles = [message["role"] for message in rest]
    if len(roles) % 2 == 0 or roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise InputError(
            "messages: expected an optional 'system', then 'user' and 'assistant' in turns, ending "
            f"with 'user'; got {[message['role'] for message in messages]}. Change their order."
        )
    texts = [message["content"] for message in rest]
    closed = zip(texts[:-1:2], texts[1::2], strict=True)
    turns = [Turn(question, (Text(answer),)) for question, answer in closed]
    return system, (*turns, Turn(check_question(texts[-1])))


def _last(events: Iterator[Event], stream: Callable[[Event], object] | None) -> TextResult:
    for event in events:
        if stream is not None:
            stream(event)
        if isinstance(event, DoneEvent):
            assert isinstance(event.result, TextResult)
            return event.result
    raise AssertionError("a stream ends with a DoneEvent")
