"""The cache session: what it computes again, what it finds, and that both are the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from visionllm_edge.runtime.errors import BundleError, ContextError
from visionllm_edge.runtime.llm import EmbeddingTable, SuperLink, TokenSequence
from visionllm_edge.runtime.llm.sequence import ImageRows
from visionllm_edge.runtime.prompts import Control, ImageSlot, Text

TOLERANCE = 1e-5


def sequence(toy: Any, parts: list[Any], image: ImageRows | None = None) -> TokenSequence:
    """Ids of words, controls (``[..]``) and the image."""
    out: TokenSequence = toy.pipeline.empty()
    segments = [
        ImageSlot() if p is ImageSlot else Control(p) if p[0] in "[<" else Text(p) for p in parts
    ]
    out.image = image
    out.append(toy.tokenizer.encode(segments, image_tokens=len(image.rows_MD) if image else 0))
    return out


def image_rows(toy: Any, key: str, seed: int, count: int = 5) -> ImageRows:
    width = toy.table.shape[1]
    rows = np.random.default_rng(seed).normal(0, 1, (count, width)).astype(np.float32)
    return ImageRows(key, rows)


def fresh(toy: Any, wanted: TokenSequence, start: int = 0) -> Any:
    return toy.new_session().run(wanted, hidden=range(start, len(wanted)))


def test_steps_of_any_length_equal_one_prefill(toy: Any) -> None:
    whole = sequence(toy, ["a cat", "[DET]", ", dog", "[POSE]", "[GEN]", "."])
    growing = toy.pipeline.empty()
    hidden = []
    for token in whole.ids:
        start = len(growing)
        growing.append([token])
        hidden.append(toy.session.run(growing, hidden=range(start, len(growing))).hidden_rD)

    assert growing.keys == whole.keys
    np.testing.assert_allclose(np.concatenate(hidden), fresh(toy, whole).hidden_rD, atol=TOLERANCE)
    lengths = [s for _, s in toy.decoder.log[: len(whole.ids)]]
    assert set(lengths) == {1, 1 + 3, 1 + 7}
    assert sum(lengths) == len(whole)


def test_a_second_question_reuses_the_picture(toy: Any) -> None:
    picture = image_rows(toy, "p", 1)
    first = sequence(toy, ["U: ", ImageSlot, "\nwhat?"], picture)
    second = sequence(toy, ["U: ", ImageSlot, "\nwhere is it?"], picture)

    toy.session.run(first)
    output = toy.session.run(second)

    words = len("where is it?") - len("wh")
    assert output.computed == words
    reference = fresh(toy, second)
    np.testing.assert_allclose(output.logits_V, reference.logits_V, atol=TOLERANCE)


def test_another_picture_is_computed_from_where_it_stands(toy: Any) -> None:
    first = sequence(toy, ["U: ", ImageSlot, "\nwhat?"], image_rows(toy, "p", 1))
    second = sequence(toy, ["U: ", ImageSlot, "\nwhat?"], image_rows(toy, "q", 2))
    assert first.keys == second.keys

    toy.session.run(first)
    output = toy.session.run(second)

    start = second.image_start()
    assert start is not None and output.computed == len(second) - start
    np.testing.assert_allclose(output.logits_V, fresh(toy, second).logits_V, atol=TOLERANCE)


def test_the_same_prompt_again_computes_its_last_position(toy: Any) -> None:
    prompt = sequence(toy, ["abc"])

    first = toy.session.run(prompt).logits_V.copy()
    again = toy.session.run(prompt)

    assert again.computed == 1
    np.testing.assert_allclose(again.logits_V, first, atol=TOLERANCE)


def test_hidden_states_asked_for_again_are_computed_again(toy: Any) -> None:
    prompt = sequence(toy, ["abc", "[DET]", "de"])
    first = toy.session.run(prompt, hidden=range(2, len(prompt))).hidden_rD

    again = toy.session.run(prompt, hidden=range(4, len(prompt)))

    assert again.computed == len(prompt) - 4
    np.testing.assert_allclose(again.hidden_rD, first[2:], atol=TOLERANCE)


def test_hidden_states_outlive_the_next_run(toy: Any) -> None:
    hidden = toy.session.run(sequence(toy, ["abc"]), hidden=range(4)).hidden_rD
    kept = hidden.copy()

    toy.session.run(sequence(toy, ["xyz"]), hidden=range(4))

    np.testing.assert_array_equal(hidden, kept)


def test_no_hidden_states_unless_asked(toy: Any) -> None:
    assert toy.session.run(sequence(toy, ["abc"])).hidden_rD is None


def test_only_the_positions_asked_for_go_through_the_end_of_the_model(toy: Any) -> None:
    prompt = sequence(toy, ["abc", "[DET]", "de", "[DET]"])
    starts = [group.position + 1 for group in prompt.groups]
    wanted = [*range(starts[0], starts[0] + 3), *range(starts[1], starts[1] + 3)]
    assert wanted[-1] == len(prompt) - 1

    output = toy.session.run(prompt, hidden=wanted)

    assert toy.decoder.rows == [(6, 1)]
    whole = fresh(toy, prompt).hidden_rD
    np.testing.assert_allclose(output.hidden_rD, whole[wanted], atol=TOLERANCE)
    toy.session.run(prompt)
    assert toy.decoder.rows[-1] == (1, 1)


def test_logits_of_several_positions_equal_those_one_by_one(toy: Any) -> None:
    prompt = sequence(toy, ["abcdef", "[DET]", "gh"])
    single = []
    for length in range(4, len(prompt) + 1):
        part = prompt.copy()
        del part.keys[length:], part.ids[length:]  # the ids behind do not matter here
        part.groups = [g for g in part.groups if g.position + g.rows < length]
        if part.keys[-1] >= 0:
            single.append((length - 1, toy.new_session().run(part).logits_V.copy()))
    assert len(single) > 5

    output = toy.session.run(prompt, logits_from=3)
    again = toy.session.run(prompt, logits_from=5, hidden=[4, 6])

    assert toy.decoder.rows[-2:] == [
        (len(prompt) - 3, len(prompt) - 3),
        (len(prompt) - 4, len(prompt) - 5),
    ]
    assert again.computed == len(prompt) - 4
    for position, logits in single:
        np.testing.assert_allclose(output.logits_lV[position - 3], logits, atol=TOLERANCE)
        if position >= 5:
            np.testing.assert_allclose(again.logits_lV[position - 5], logits, atol=TOLERANCE)
    whole = fresh(toy, prompt).hidden_rD
    np.testing.assert_allclose(again.hidden_rD, whole[[4, 6]], atol=TOLERANCE)


@pytest.mark.parametrize("rows", [1, 4, 7, 20])
def test_a_prompt_in_parts_equals_one_run(toy: Any, rows: int) -> None:
    """Hidden states, logits and image rows on both sides of every cut."""
    picture = image_rows(toy, "p", 1)
    prompt = sequence(toy, ["ab", "[DET]", "c ", ImageSlot, "\nde", "[GEN]", "f"], picture)
    wanted = [3, 4, 5, 12, *range(20, 24)]
    whole = toy.new_session().run(prompt, hidden=wanted, logits_from=8)
    session = toy.new_session(rows=rows)
    before = len(toy.decoder.log)

    parts = session.run(prompt, hidden=wanted, logits_from=8)
    lengths = [length for _, length in toy.decoder.log[before:]]

    np.testing.assert_allclose(parts.hidden_rD, whole.hidden_rD, atol=TOLERANCE)
    np.testing.assert_allclose(parts.logits_lV, whole.logits_lV, atol=10 * TOLERANCE)
    assert sum(lengths) == len(prompt) == parts.computed
    assert max(lengths) <= rows and max(lengths) - min(lengths) <= 1
    assert len(lengths) == -(-len(prompt) // rows)
    assert session.length == len(prompt)
    again = session.run(prompt)
    np.testing.assert_allclose(again.logits_V, whole.logits_V, atol=TOLERANCE)


def test_what_was_computed_before_a_failure_is_kept(toy: Any) -> None:
    prompt = sequence(toy, ["abcdefghijkl"])
    session = toy.new_session(rows=5)
    run = toy.decoder.run_with_cache
    calls = []

    def failing(inputs: Any, cache: Any) -> Any:
        calls.append(inputs)
        toy.decoder.fail = len(calls) == 2
        return run(inputs, cache)

    toy.decoder.run_with_cache = failing
    with pytest.raises(RuntimeError):
        session.run(prompt)
    assert session.length == 4

    output = session.run(prompt)

    assert output.computed == len(prompt) - 4
    np.testing.assert_allclose(output.logits_V, fresh(toy, prompt).logits_V, atol=TOLERANCE)


def test_two_pictures_in_turns_are_each_computed_once(toy: Any) -> None:
    session = toy.new_session(caches=2)
    asked = [
        sequence(toy, ["U: ", ImageSlot, f"\n{question}"], image_rows(toy, key, seed))
        for question in ("what?", "where?", "why?")
        for key, seed in (("p", 1), ("q", 2))
    ]
    before = toy.decoder.caches

    outputs = [session.run(wanted) for wanted in asked]

    assert toy.decoder.caches - before == 1
    assert [output.computed for output in outputs[:2]] == [len(asked[0]), len(asked[1])]
    for wanted, output in zip(asked[2:], outputs[2:], strict=True):
        start = wanted.image_start()
        assert start is not None and output.computed <= len(wanted) - start - 5
    single = toy.new_session()
    assert [single.run(w).computed for w in asked][2] > outputs[2].computed
    np.testing.assert_allclose(
        session.run(asked[0]).logits_V, fresh(toy, asked[0]).logits_V, atol=TOLERANCE
    )
    assert session.cache_bytes == 2 * single.cache_bytes


def test_a_third_picture_takes_the_cache_that_was_not_used_for_longest(toy: Any) -> None:
    session = toy.new_session(caches=2)
    p, q, r = (
        sequence(toy, ["U: ", ImageSlot, "\nwhat?"], image_rows(toy, key, seed))
        for key, seed in (("p", 1), ("q", 2), ("r", 3))
    )
    for wanted in (p, q, p, r):
        session.run(wanted)

    assert session.run(p).computed == 1
    assert session.run(r).computed == 1
    assert session.run(q).computed > 1
    session.clear()
    assert session.run(q).computed == len(q)


def test_going_back_a_little_makes_no_second_cache(toy: Any) -> None:
    session = toy.new_session(caches=2)
    before = toy.decoder.caches
    words = sequence(toy, ["abcdefgh"])
    for length in (3, 5, 9, 7, 9):
        part = words.copy()
        part.drop_plain(len(words) - length)
        session.run(part)
    assert toy.decoder.caches == before


def test_rewind_then_another_continuation(toy: Any) -> None:
    long = sequence(toy, ["abcdef"])
    toy.session.run(long)

    toy.session.rewind(3)

    assert toy.session.length == 3
    output = toy.session.run(long)
    assert output.computed == len(long) - 3
    with pytest.raises(ValueError, match="rewind"):
        toy.session.rewind(100)


def test_a_prompt_that_is_too_long_is_refused_before_any_work(make_toy: Any) -> None:
    toy = make_toy(capacity=10)
    toy.session.run(sequence(toy, ["abc"]))
    runs = len(toy.decoder.log)

    with pytest.raises(ContextError, match=r"at most 10 positions.*got 13"):
        toy.session.run(sequence(toy, ["abcdefg", "[DET]"]))

    assert len(toy.decoder.log) == runs
    assert toy.session.length == 5


def test_a_prompt_of_exactly_the_context_fits(make_toy: Any) -> None:
    toy = make_toy(capacity=12)
    assert toy.session.run(sequence(toy, ["abcdef", "[DET]"])).computed == 12


def test_a_failed_run_leaves_a_session_that_works(toy: Any) -> None:
    prompt = sequence(toy, ["abc"])
    longer = sequence(toy, ["abcdef", "[DET]"])
    toy.session.run(prompt)
    toy.decoder.fail = True
    with pytest.raises(RuntimeError):
        toy.session.run(longer)
    toy.decoder.fail = False

    output = toy.session.run(longer, hidden=range(len(longer)))

    np.testing.assert_allclose(output.hidden_rD, fresh(toy, longer).hidden_rD, atol=TOLERANCE)


# The three defects of the reference around several routing tokens in one conversation.


def test_several_routing_tokens_in_a_history_stand_at_the_right_offsets(toy: Any) -> None:
    history = sequence(toy, ["ab", "[DET]", ", cd", "[DET]", "e", "[DET]", "."])
    rows = toy.links[0].rows_ND

    embeddings = history.embeddings(0, EmbeddingTable(toy.table))

    expected = []
    for token in history.ids:
        expected.append(toy.table[token])
        if token == toy.tokenizer.control_id("[DET]"):
            expected += list(rows)
    np.testing.assert_array_equal(embeddings, np.array(expected))
    positions = [group.position for group in history.groups]
    assert [history.keys[p] for p in positions] == [toy.tokenizer.control_id("[DET]")] * 3
    assert [history.ids[group.token_index] for group in history.groups] == [
        toy.tokenizer.control_id("[DET]")
    ] * 3


def test_groups_of_history_script_and_generation_follow_one_rule(toy: Any) -> None:
    """Rows come with each routing token, not by a mode that the first sample decides."""
    prompt = sequence(toy, ["ab", "[DET]", ", cd", "[DET]", "."])
    with_history = prompt.copy()
    with_history.append(toy.tokenizer.encode([Text("e"), Control("[DET]")], bos=False))
    at_once = sequence(toy, ["ab", "[DET]", ", cd", "[DET]", ".e", "[DET]"])

    toy.session.run(prompt)
    output = toy.session.run(with_history, hidden=range(len(with_history) - 3, len(with_history)))

    assert with_history.keys == at_once.keys and with_history.groups == at_once.groups
    assert output.computed == len(with_history) - len(prompt)
    reference = fresh(toy, at_once, len(at_once) - 3)
    np.testing.assert_allclose(output.hidden_rD, reference.hidden_rD, atol=TOLERANCE)
    assert len(prompt.groups) == 2  # the copy grew by itself


def test_groups_of_different_decoders_keep_their_own_tables(toy: Any) -> None:
    mixed = sequence(toy, ["a", "[DET]", "b", "[GEN]", "c", "[POSE]", "d"])

    assert [(g.routing, g.rows, g.decoder) for g in mixed.groups] == [
        ("[DET]", 3, "detector"),
        ("[GEN]", 7, "gen"),
        ("[POSE]", 3, "pose"),
    ]
    embeddings = mixed.embeddings(0, EmbeddingTable(toy.table))
    for group, link in zip(mixed.groups, (0, 2, 1), strict=True):
        span = embeddings[group.position + 1 : group.position + 1 + group.rows]
        np.testing.assert_array_equal(span, toy.links[link].rows_ND)


@pytest.mark.parametrize("start", range(21))
def test_embeddings_from_any_position(toy: Any, start: int) -> None:
    mixed = sequence(
        toy, ["a", "[DET]", "b ", ImageSlot, "\n", "[GEN]"], image_rows(toy, "p", 1, 4)
    )
    table = EmbeddingTable(toy.table)
    assert len(mixed) == 21

    np.testing.assert_array_equal(
        mixed.embeddings(start, table), mixed.embeddings(0, table)[start:]
    )


def test_an_id_outside_the_table_is_a_bundle_error(toy: Any) -> None:
    with pytest.raises(BundleError, match=r"0\.\.9, got 12"):
        EmbeddingTable(toy.table[:10]).rows([3, 12])


@dataclass
class FakeBundle:
    """As much of a bundle as the tables need."""

    root: Path

    @property
    def manifest(self) -> Any:
        llm = SimpleNamespace(vocab_size=4, hidden_size=3)
        link = SimpleNamespace(tokens=("[DET]",), rows=2, table="link.npy", decoder="detector")
        unused = SimpleNamespace(tokens=("[GEN]",), rows=2, table=None, decoder=None)
        model = SimpleNamespace(
            llm=llm, embed_table="table.npy", superlink={"det": link, "gen": unused}
        )
        return SimpleNamespace(model=model)

    def array(self, name: str) -> Any:
        return np.load(self.root / name, mmap_mode="r")


def test_tables_are_mapped_and_checked(tmp_path: Path) -> None:
    bundle: Any = FakeBundle(tmp_path)
    values = np.arange(12, dtype=np.float16).reshape(4, 3)
    np.save(tmp_path / "table.npy", values)
    np.save(tmp_path / "link.npy", values[:2])

    rows = EmbeddingTable.from_bundle(bundle).rows([2, 0])
    (link,) = SuperLink.from_bundle(bundle)

    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, values[[2, 0]].astype(np.float32))
    assert (link.name, link.tokens, link.decoder) == ("det", ("[DET]",), "detector")
    np.testing.assert_array_equal(link.rows_ND, values[:2].astype(np.float32))


def test_a_table_of_another_shape_or_type_is_refused(tmp_path: Path) -> None:
    bundle: Any = FakeBundle(tmp_path)
    np.save(tmp_path / "table.npy", np.zeros((4, 4), np.float32))
    np.save(tmp_path / "link.npy", np.zeros((2, 3), np.int64))

    with pytest.raises(BundleError, match=r"'table\.npy'.*\(4, 3\).*\(4, 4\)"):
        EmbeddingTable.from_bundle(bundle)
    with pytest.raises(BundleError, match=r"'link\.npy'.*int64"):
        SuperLink.from_bundle(bundle)
