import pytest

from visionllm_edge.export.quantize.policy import LlmPrecision, block_for
from visionllm_edge.runtime.errors import ConfigError


def test_defaults() -> None:
    plain = LlmPrecision.from_options()
    assert (plain.weights, plain.block_size, plain.cache) == ("fp32", 0, "float32")
    assert plain.head_for(32000, 4096) == "fp32" and not plain.quantized and plain.bits == 32
    awq = LlmPrecision.from_options("int4-awq")
    assert (awq.weights, awq.method, awq.block_size) == ("int4", "awq", 32)
    assert awq.cache == "float16" and awq.quantized and awq.bits == 4
    assert LlmPrecision.from_options("int8", 128, cache="float32").cache == "float32"


@pytest.mark.parametrize(
    ("precision", "cache", "calibrated", "rounds"),
    [
        ("fp32", None, False, False),
        ("fp32", "float16", False, False),
        ("fp32", "int8", True, True),
        ("int4", None, False, True),
        ("int4", "int8", True, True),
        ("int4-awq", None, True, True),
    ],
)
def test_a_cache_of_bytes_is_calibrated_beside_any_weights(
    precision: str, cache: str | None, calibrated: bool, rounds: bool
) -> None:
    made = LlmPrecision.from_options(precision, cache=cache)
    assert (made.calibrated, made.rounds) == (calibrated, rounds)


@pytest.mark.parametrize("word", ["fp32", "int8", "int4", "int4-awq", "stored"])
def test_option_is_what_was_asked(word: str) -> None:
    assert LlmPrecision.from_options(word).option == word


def test_head_by_its_size_unless_chosen() -> None:
    precision = LlmPrecision.from_options("int4")
    assert precision.head_for(666, 192) == "fp32"
    assert precision.head_for(49152, 576) == "int8"
    assert LlmPrecision.from_options("int4", head="fp32").head_for(49152, 576) == "fp32"
    assert LlmPrecision.from_options("int4", head="int8").head_for(666, 192) == "int8"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int3"}, "--llm-precision: expected one of fp32, int8, int4, int4-awq"),
        ({"precision": "int4", "block": 48}, "--llm-block: expected one of 32, 64, 128, got 48"),
        ({"precision": "stored", "block": 32}, "--llm-block: expected none beside .* stored"),
        ({"precision": "fp32", "block": 32}, "--llm-block: expected a quantised precision"),
        ({"precision": "fp32", "head": "int8"}, "--llm-head int8: expected a quantised"),
        ({"precision": "int4", "head": "int4"}, "--llm-head: expected one of fp32, int8"),
        ({"precision": "int4", "cache": "int4"}, "--llm-cache: expected one of float32, float16"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LlmPrecision.from_options(**options)  # type: ignore[arg-type]


def test_block_that_divides() -> None:
    assert block_for(4096, 128) == 128
    assert block_for(576, 128) == 64
    assert block_for(48, 32) == 16
    assert block_for(40, 32) is None
