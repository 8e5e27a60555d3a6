"""Conversations with several routing tokens: where each group's rows stand, and that they agree.

Three mistakes are easy to make here, and the reference makes them (VisionLLM v2, its generation
code): rows of a later group at a place that was counted before the earlier groups had theirs; one
sample of several deciding whether rows are there already; all groups of an answer taken for groups
of one decoder. Each has a test that a wrong form of it fails.
"""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from visionllm_edge.runtime.llm import EmbeddingTable, Generation, TokenSequence
from visionllm_edge.runtime.llm.sampling import GenerationConfig
from visionllm_edge.runtime.prompts import Control, Text, Turn, scripted_answer

Float = NDArray[np.float32]
MIXED = (
    *(Text("Sure, cat"), Control("[DET]"), Text(", a painting"), Control("[GEN]")),
    *(Text(", nose"), Control("[POSE]"), Text(", sky"), Control("[SEG]"), Text(".")),
)
HISTORY = (
    Turn("find it", scripted_answer(["cat", "dog"])),
    Turn("paint it", (Text("Here: "), Control("[GEN]"), Text("."))),
    Turn("hello", (Text("Hello."),)),
    Turn("all of it", MIXED),
)


def rows_of(toy: Any) -> dict[int, Float]:
    """Rows that follow each routing id."""
    return {toy.tokenizer.control_id(t): link.rows_ND for link in toy.links for t in link.tokens}


def conversation(toy: Any) -> TokenSequence:
    sequence: TokenSequence = toy.pipeline.prompt(HISTORY, None)
    return sequence


def literal(toy: Any, ids: list[int]) -> Float:
    """The context written out from right to left, so that no insertion moves a later one."""
    rows = [toy.table[token] for token in ids]
    for index in range(len(ids) - 1, -1, -1):
        if ids[index] in rows_of(toy):
            rows[index + 1 : index + 1] = list(rows_of(toy)[ids[index]])
    return np.stack(rows)


def stale(toy: Any, ids: list[int]) -> Float:
    """The reference's form: from left to right, at the places that the ids had in the beginning."""
    rows = [toy.table[token] for token in ids]
    for index, token in enumerate(ids):
        if token in rows_of(toy):
            rows[index + 1 : index + 1] = list(rows_of(toy)[token])
    return np.stack(rows)


def test_a_history_with_groups_of_several_sizes_is_written_out_exactly(toy: Any) -> None:
    sequence = conversation(toy)
    assert [g.rows for g in sequence.groups] == [3, 3, 7, 3, 7, 3, 3]
    table = EmbeddingTable(toy.table)
    expected = literal(toy, sequence.ids)
    np.testing.assert_array_equal(sequence.embeddings(0, table), expected)
    wrong = stale(toy, sequence.ids)
    assert wrong.shape == expected.shape and not np.array_equal(wrong, expected)
    for start in range(0, len(sequence), 7):  # from any place in the middle
        np.testing.assert_array_equal(sequence.embeddings(start, table), expected[start:])


def test_every_group_stands_behind_its_own_token(toy: Any) -> None:
    sequence = conversation(toy)
    expected = literal(toy, sequence.ids)
    for group in sequence.groups:
        token = sequence.ids[group.token_index]
        np.testing.assert_array_equal(expected[group.position], toy.table[token])
        first = group.position + 1
        np.testing.assert_array_equal(expected[first : first + group.rows], rows_of(toy)[token])
        assert toy.tokenizer.control_name(token) == group.routing


def test_groups_keep_their_own_decoder(toy: Any) -> None:
    decoders = [group.decoder for group in conversation(toy).groups]
    assert decoders == ["detector", "detector", "gen", "detector", "gen", "pose", "detector"]


def test_each_sequence_decides_for_itself(toy: Any) -> None:
    """Two conversations in turns over one session: one has groups already, the other none yet."""
    prompt = [Turn("find it", scripted_answer(["cat", "dog"])), Turn("anything")]
    routing = [toy.tokenizer.control_id(t) for t in ("[DET]", "[POSE]", "[GEN]")]
    toy.table[routing] *= 4
    options = GenerationConfig(max_new_tokens=25, temperature=1.5, seed=3)

    def started(turns: list[Turn], session: Any) -> tuple[TokenSequence, Generation]:
        sequence = toy.pipeline.prompt(turns, None)
        generation = Generation(
            session, sequence, toy.tokenizer, options, suppressed=toy.pipeline.suppressed
        )
        return sequence, generation

    shared = toy.new_session()
    with_groups, one = started(prompt, shared)
    without, other = started(prompt[1:], shared)
    assert with_groups.groups and not without.groups
    pairs = list(zip_longest(one, other))
    assert one.finish_reason and other.finish_reason

    seen = [[step for step in side if step is not None] for side in zip(*pairs, strict=True)]
    for turns, steps in zip((prompt, prompt[1:]), seen, strict=True):
        _, alone = started(turns, toy.new_session())
        for ours, theirs in zip(steps, alone, strict=True):
            assert ours.token == theirs.token and ours.group == theirs.group
            if ours.hidden_ND is not None and theirs.hidden_ND is not None:
                np.testing.assert_allclose(ours.hidden_ND, theirs.hidden_ND, atol=1e-4)
        assert any(step.group is not None for step in steps)


@pytest.mark.parametrize("parts", [1, 5, 23])
def test_incremental_states_equal_one_teacher_forced_prefill(toy: Any, parts: int) -> None:
    """The whole history a few ids at a time, as a conversation does it, and at once."""
    whole = conversation(toy)
    at_once = toy.new_session().run(whole, hidden=range(len(whole))).hidden_rD

    session = toy.new_session()
    grown = toy.pipeline.empty()
    collected: list[Float] = []
    for ids in np.array_split(np.array(whole.ids), parts):
        groups = grown.append(ids.tolist())
        wanted = [p for g in groups for p in range(g.position + 1, g.position + 1 + g.rows)]
        output = session.run(grown, hidden=wanted)
        if output.hidden_rD is not None:
            collected.append(output.hidden_rD)

    assert grown.groups == whole.groups and grown.keys == whole.keys
    expected = np.concatenate([at_once[g.position + 1 :][: g.rows] for g in whole.groups])
    np.testing.assert_allclose(np.concatenate(collected), expected, atol=1e-4)


def test_an_answer_is_limited_per_kind_of_group(toy: Any) -> None:
    toy.reply("all of it", (*MIXED, *MIXED))
    sequence = toy.pipeline.prompt((Turn("all of it"),), None)
    pose = frozenset({toy.tokenizer.control_id("[POSE]")})
    generation = Generation(
        toy.new_session(), sequence, toy.tokenizer, GenerationConfig(), group_limits={pose: 1}
    )
    groups = [step.group.routing for step in generation if step.group is not None]
    assert groups == ["[DET]", "[GEN]", "[POSE]", "[SEG]", "[DET]", "[GEN]"]
    assert generation.finish_reason == "length"
