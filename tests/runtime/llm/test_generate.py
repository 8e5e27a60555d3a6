"""Guessing ahead and settled formats: the same tokens, fewer runs of the decoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from visionllm_edge.runtime.errors import ContextError, InputError
from visionllm_edge.runtime.llm import Choices, Generation, GenerationConfig, Listing
from visionllm_edge.runtime.prompts import Text


def prompt(toy: Any, text: str) -> Any:
    out = toy.pipeline.empty()
    out.append(toy.tokenizer.encode([Text(text)]))
    return out


def write(toy: Any, text: str, session: Any = None, **options: Any) -> tuple[list[Any], Generation]:
    form = options.pop("form", None)
    generation = Generation(
        session or toy.new_session(),
        prompt(toy, text),
        toy.tokenizer,
        GenerationConfig(**options),
        suppressed=toy.pipeline.suppressed,
        form=form,
    )
    return list(generation), generation


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize("lookup", [1, 3, 16])
@pytest.mark.parametrize("seed", range(8))
def test_guesses_never_change_the_answer(
    toy: Any, seed: int, lookup: int, temperature: float
) -> None:
    """Random models and prompts, routing tokens among the answers, sampled ones too."""
    rng = np.random.default_rng(seed)
    toy.decoder.weights = rng.normal(0, 0.5, toy.decoder.weights.shape).astype(np.float32)
    # Few letters are likely, so that answers repeat themselves; a routing token among them.
    likely = [*toy.tokenizer.encode([Text("abc")], bos=False), toy.tokenizer.control_id("[DET]")]
    toy.table[likely] *= 3
    text = "".join(rng.choice(list("abcd "), 60))
    options = {"max_new_tokens": 60, "temperature": temperature, "seed": seed}

    plain, slow = write(toy, text, **options)
    guessed, fast = write(toy, text, lookup_tokens=lookup, **options)

    assert [step.token for step in guessed] == [step.token for step in plain]
    assert [step.text for step in guessed] == [step.text for step in plain]
    assert fast.finish_reason == slow.finish_reason
    for ours, theirs in zip(guessed, plain, strict=True):
        assert ours.group == theirs.group
        if theirs.hidden_ND is not None:
            np.testing.assert_allclose(ours.hidden_ND, theirs.hidden_ND, atol=1e-4)
    assert fast.runs <= slow.runs


def test_repeated_text_takes_fewer_runs(toy: Any) -> None:
    words = "the red circle and the blue star"
    toy.reply("repeat", (Text(words),))
    text = f"USER: repeat: {words} ASSISTANT:"

    plain, slow = write(toy, text)
    guessed, fast = write(toy, text, lookup_tokens=8)

    assert [step.token for step in guessed] == [step.token for step in plain]
    assert "".join(step.text for step in plain).strip() == words
    assert slow.runs == len(plain) + 1
    assert fast.runs < slow.runs / 2


def test_guesses_stay_within_the_limits(make_toy: Any) -> None:
    """At the end of the context and of the token limit nothing is guessed that could not fit."""
    for capacity, limit in ((60, 100), (90, 7)):
        toy = make_toy()
        toy.reply("repeat", (Text("abab" * 20),))
        text = "USER: repeat ababab ASSISTANT:"
        plain, slow = write(toy, text, toy.new_session(capacity), max_new_tokens=limit)
        guessed, fast = write(
            toy, text, toy.new_session(capacity), max_new_tokens=limit, lookup_tokens=16
        )
        assert [s.token for s in guessed] == [s.token for s in plain]
        assert fast.finish_reason == slow.finish_reason == "length"
        assert fast.runs < slow.runs
        assert all(start + s <= capacity for start, s in toy.decoder.log)


def test_another_question_between_guesses_changes_nothing(toy: Any) -> None:
    words = "abcabcabcabcabc"
    toy.reply("repeat", (Text(words),))
    session = toy.new_session()
    generation = Generation(
        session,
        prompt(toy, f"USER: repeat {words} ASSISTANT:"),
        toy.tokenizer,
        GenerationConfig(lookup_tokens=4),
    )
    said = ""
    for step in generation:
        said += step.text
        session.run(prompt(toy, "USER: something else ASSISTANT:"))
    assert said.strip() == words


def adversary(toy: Any) -> set[int]:
    """Makes every id that a format could want the least likely one."""
    kept = toy.tokenizer.encode([Text("yesno,. ")], bos=False)
    loud = [i for i in range(len(toy.table)) if i not in kept]
    toy.table[loud] *= 20
    return set(kept)


def ids(toy: Any, *texts: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(toy.tokenizer.encode([Text(t)], bos=False)) for t in texts)


@pytest.mark.parametrize("temperature", [0.0, 3.0])
@pytest.mark.parametrize("lookup", [0, 4])
@pytest.mark.parametrize("seed", range(4))
def test_no_logits_make_an_answer_leave_its_format(
    toy: Any, seed: int, lookup: int, temperature: float
) -> None:
    adversary(toy)
    options = {"temperature": temperature, "seed": seed, "lookup_tokens": lookup}
    choices = Choices(ids(toy, "yes", "no", "not sure"), toy.tokenizer.eos)
    (closer,) = ids(toy, ".")
    listing = Listing(
        ids(toy, "so yes", "so no"), ids(toy, ", yes", ", no"), closer, toy.tokenizer.eos
    )

    said, chosen = write(toy, "yes no yes?", form=choices, **options)
    listed, made = write(toy, "yes no yes?", form=listing, **options)

    assert tuple(step.token for step in said) in choices.options
    assert tuple(step.token for step in listed) in {
        (*first, *rest, *listing.closer)
        for i, first in enumerate(listing.first)
        for rest in ((), listing.later[1 - i])
    }
    assert chosen.finish_reason == made.finish_reason == "stop"


def test_settled_tokens_take_no_runs(toy: Any) -> None:
    only = Choices(ids(toy, "a long answer that is settled"), toy.tokenizer.eos)
    said, generation = write(toy, "anything", form=only)
    assert tuple(step.token for step in said) == only.options[0]
    assert generation.runs == 0

    two = Choices(ids(toy, "left of it", "left from it"), toy.tokenizer.eos)
    _, generation = write(toy, "anything", form=two)
    assert generation.runs == 1


def test_a_routing_token_in_a_format_brings_its_hidden_states(toy: Any) -> None:
    det = toy.tokenizer.control_id("[DET]")
    (name,) = ids(toy, "cat")
    form = Choices(((*name, det),), toy.tokenizer.eos)
    steps, generation = write(toy, "find it", form=form)
    assert steps[-1].group is not None and steps[-1].hidden_ND.shape == (3, 16)
    assert generation.runs == 1 and generation.finish_reason == "stop"


def test_a_format_that_could_be_cut_off_is_refused(toy: Any, make_toy: Any) -> None:
    form = Choices(ids(toy, "yes", "certainly"), toy.tokenizer.eos)
    with pytest.raises(
        InputError, match=rf"max_new_tokens.*has {len(form.longest)} tokens.*says 3"
    ):
        write(toy, "a?", form=form, max_new_tokens=3)
    length = len(prompt(toy, "a?"))
    exactly = length + len(form.longest) - 1
    with pytest.raises(ContextError, match=f"got {exactly}"):
        write(toy, "a?", toy.new_session(exactly - 1), form=form)
    write(toy, "a?", toy.new_session(exactly), form=form)
    det = toy.tokenizer.control_id("[DET]")
    with pytest.raises(InputError, match=r"max_groups.*has 2 groups.*says 1"):
        write(toy, "a?", form=Choices(((det, det),), toy.tokenizer.eos), max_groups=1)


def test_several_ids_may_end_an_answer(toy: Any) -> None:
    toy.reply("hello", (Text("Hello. Bye."),))
    (stop,) = toy.tokenizer.encode([Text("x.")], bos=False)[-1:]
    generation = Generation(
        toy.new_session(),
        prompt(toy, "USER: hello ASSISTANT:"),
        toy.tokenizer,
        GenerationConfig(),
        ends=frozenset({toy.tokenizer.eos, stop}),
    )
    assert "".join(step.text for step in generation).strip() == "Hello"
    assert generation.finish_reason == "stop"
