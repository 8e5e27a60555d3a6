"""The language model alone, over the toy decoder: prompts, chat, formats, streaming."""

from __future__ import annotations

from typing import Any

import pytest

from visionllm_edge.runtime import GenerationConfig, LanguageModel
from visionllm_edge.runtime.errors import BundleError, ContextError, InputError
from visionllm_edge.runtime.events import DoneEvent, Event, TokenEvent
from visionllm_edge.runtime.language_model import turns_from_messages
from visionllm_edge.runtime.pipelines.text import TextPipeline
from visionllm_edge.runtime.prompts import TEMPLATES, Text, Turn, conversation, follow_up
from visionllm_edge.runtime.tokenizer import Tokenizer

HELLO = (Text("Hello to you."),)


@pytest.fixture
def pipeline(toy: Any) -> TextPipeline:
    toy.reply("hello", HELLO)
    toy.reply("colour", (Text("green"),))
    out: TextPipeline = toy.text_pipeline()
    return out


@pytest.fixture
def model(pipeline: TextPipeline) -> LanguageModel:
    return LanguageModel(pipeline)


def test_a_question_is_answered_and_streamed(model: LanguageModel) -> None:
    events: list[Event] = []

    result = model.generate("hello", stream=events.append)

    assert (result.text, result.question, result.finish_reason) == (
        "Hello to you.",
        "hello",
        "stop",
    )
    assert isinstance(events[-1], DoneEvent) and events[-1].result == result
    tokens = [event for event in events if isinstance(event, TokenEvent)]
    assert len(tokens) == len(events) - 1
    assert "".join(token.text for token in tokens).strip() == result.text
    assert len([t for t in tokens if t.text]) > 5  # as it is made, not at the end
    cut = model.generate("hello", config=GenerationConfig(max_new_tokens=3))
    assert cut.finish_reason == "length" and "Hello".startswith(cut.text)


def test_prompts_that_begin_alike_share_what_was_computed(model: LanguageModel, toy: Any) -> None:
    model.generate_many(["say hello", "say hello again"])
    runs = [run for run in toy.decoder.log if run[1] > 1]
    assert runs[0][0] == 0
    assert runs[1][0] >= runs[0][1] - len(" ASSISTANT:") - 1


def test_messages_are_turns(model: LanguageModel, pipeline: TextPipeline) -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "hello"},
    ]
    system, turns = turns_from_messages(messages)
    assert (system, turns) == ("Be kind.", (Turn("one", (Text("two"),)), Turn("hello")))
    assert model.generate(messages).text == "Hello to you."
    text = pipeline.tokenizer.decode(pipeline.conversation(turns, system).ids)
    assert "Be kind. USER: one ASSISTANT: two</s>" in text


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "assistant", "content": "a"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}],
        [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
        [{"role": "user"}],
        [{"role": "user", "content": "  "}],
    ],
)
def test_messages_in_another_order_are_refused(messages: list[dict[str, str]]) -> None:
    with pytest.raises(InputError):
        turns_from_messages(messages)


def test_bare_text_goes_on(model: LanguageModel, toy: Any) -> None:
    toy.decoder.replies.clear()
    config = GenerationConfig(max_new_tokens=5)
    result = model.generate("The", raw=True, config=config)
    assert toy.decoder.log[0] == (0, 2 + len("The"))  # beginning, blank and letters, no template
    assert result.question == "The"
    with pytest.raises(InputError, match="Leave raw out"):
        model.generate([{"role": "user", "content": "a"}], raw=True)


@pytest.mark.parametrize("raw", [False, True])
def test_choices_are_answered_word_for_word(model: LanguageModel, toy: Any, raw: bool) -> None:
    toy.decoder.replies.clear()
    options = [" yes", " no", " not sure"] if raw else ["yes", "no", "not sure"]
    said = {
        model.generate(
            "Is it?",
            raw=raw,
            choices=options,
            config=GenerationConfig(temperature=5.0, seed=seed, max_new_tokens=1),
        ).text
        for seed in range(20)
    }
    assert said == set(options)


@pytest.mark.parametrize("choices", [[], ["yes", " yes "], ["yes", " "], "yes"])
def test_unusable_choices_are_refused(model: LanguageModel, choices: Any) -> None:
    with pytest.raises(InputError, match="choices"):
        model.generate("Is it?", choices=choices)


def test_the_model_never_writes_a_control(toy: Any) -> None:
    pipeline = toy.text_pipeline()
    loud = [i for name, i in toy.tokenizer.control_ids.items() if name != "</s>"]
    toy.table[loud] *= 50
    config = GenerationConfig(temperature=2.0, seed=0, max_new_tokens=60)
    events: list[Event] = []
    LanguageModel(pipeline).generate("anything", config=config, stream=events.append)
    written = {event.token_id for event in events if isinstance(event, TokenEvent)}
    assert written and not written & set(loud)


def test_chat_costs_its_new_words_only(model: LanguageModel, toy: Any) -> None:
    chat = model.chat()
    assert chat.send("hello").text == "Hello to you."
    used, before = chat.context_used, len(toy.decoder.log)

    assert chat.send("which colour?").text == "green"

    start, new = toy.decoder.log[before]
    assert start >= used - 1 and new <= len("USER: which colour? ASSISTANT:") + 4
    assert [question for question, _ in chat.turns] == ["hello", "which colour?"]
    chat.reset()
    assert chat.turns == () and chat.context_used == 0
    assert chat.send("hello").text == "Hello to you."


def test_a_stream_given_up_leaves_the_history(model: LanguageModel) -> None:
    chat = model.chat()
    chat.send("hello")
    used = chat.context_used
    next(iter(chat.stream("which colour?")))
    assert chat.context_used == used and len(chat.turns) == 1
    assert chat.send("which colour?").text == "green"


def test_what_does_not_fit_is_refused_before_any_work(toy: Any) -> None:
    model = LanguageModel(toy.text_pipeline(capacity=200))
    assert model.context == 200
    with pytest.raises(ContextError, match="at most 200"):
        model.generate("a" * 200)
    with pytest.raises(ContextError, match="at most 200"):
        model.chat().stream("a" * 200)
    with pytest.raises(InputError):
        model.generate(" ")
    assert toy.decoder.log == []


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_follow_up_is_what_the_whole_conversation_says(template: str) -> None:
    answer = (Text("fine"),)
    whole = conversation((Turn("how", answer), Turn("why")), image=False, template=template)
    first = conversation((Turn("how", answer),), image=False, template=template)
    behind = follow_up("why", template)
    end = whole.index(behind[0], len(conversation((Turn("how"),), image=False, template=template)))
    assert whole[end:] == behind
    assert len(first) <= len(whole)


def test_chatml_ends_with_its_own_control(make_toy: Any, make_tokenizer: Any) -> None:
    toy = make_toy(tokenizer=make_tokenizer("<|im_start|>", "<|im_end|>"))
    tokenizer: Tokenizer = toy.tokenizer
    pipeline = TextPipeline(
        tokenizer=tokenizer, session=toy.session, template="chatml", system="Be kind."
    )
    end = tokenizer.control_id("<|im_end|>")
    assert pipeline.ends == {tokenizer.eos, end}
    assert end not in pipeline.suppressed
    assert tokenizer.control_id("<|im_start|>") in pipeline.suppressed
    names = [tokenizer.control_name(i) for i in pipeline.conversation((Turn("a"),)).ids]
    assert [n for n in names if n] == [
        "<s>", "<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>", "<|im_start|>"
    ]  # fmt: skip
    toy.table[end] *= 100
    loud = LanguageModel(pipeline).generate("a", config=GenerationConfig(max_new_tokens=50))
    assert loud.finish_reason == "stop" and "im_end" not in loud.text
    said = LanguageModel(pipeline).generate("a", choices=["yes", "no"])
    assert said.text in ("yes", "no") and said.finish_reason == "stop"


def test_an_unknown_template_is_refused(toy: Any) -> None:
    with pytest.raises(BundleError, match="template: expected one of"):
        TextPipeline(tokenizer=toy.tokenizer, session=toy.session, template="other")
