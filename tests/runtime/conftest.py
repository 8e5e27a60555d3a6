"""A toy VisionLLM v2 in numpy that keeps the stage contract: real attention over a real cache.

Its words can be scripted: ``ToyDecoder.replies`` maps a part of the question to the answer's ids.
The script reads the tokens back out of the cache, so it only works if the cache is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import tokenizers
from numpy.typing import NDArray
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from visionllm_edge.runtime.llm import DecoderSession, EmbeddingTable, SuperLink
from visionllm_edge.runtime.manifest import DetectorSpec, Normalization
from visionllm_edge.runtime.pipelines.detector import Detector
from visionllm_edge.runtime.pipelines.text import TextPipeline
from visionllm_edge.runtime.pipelines.visionllm_v2 import VisionLLMv2, VisionSettings
from visionllm_edge.runtime.ports import StagePorts
from visionllm_edge.runtime.prompts import Segment, Text
from visionllm_edge.runtime.tokenizer import Tokenizer

Float = NDArray[np.float32]
BLANK = "\N{LOWER ONE EIGHTH BLOCK}"
CONTROLS = (
    "[PAD]", "<image>", "<im_patch>", "<det>", "</det>", "[DET]", "[GRD]", "[SEG]", "[POSE]",
    "[GEN]", "[EMB]", "[EMB2]", "[EMB3]", "[EMB4]",
)  # fmt: skip
DIM = 16
ROWS = 3
LAYERS = 2
QUERIES = 6


def toy_tokenizer(*more: str) -> Tokenizer:
    """Letters and bytes; no merges, so that every text has one encoding. ``more`` are controls."""
    names = (*CONTROLS, *more)
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:?!'<>/[]_" + BLANK
    for piece in [f"<0x{i:02X}>" for i in range(256)] + list(letters):
        vocab.setdefault(piece, len(vocab))
    whole = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    whole.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    whole.decoder = decoders.Sequence(
        [
            decoders.Replace(BLANK, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    whole.add_special_tokens([AddedToken("</s>", normalized=False)])
    whole.add_special_tokens(
        [AddedToken(t, lstrip=True, rstrip=True, normalized=False) for t in names]
    )
    controls = {name: int(whole.token_to_id(name) or 0) for name in names}
    return Tokenizer(whole.to_str(), controls=controls, bos=1, eos=2, space_after_control=False)


class ToyCache:
    """Fixed buffers: keys and values of every layer, and the raw inputs for the script."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        # NaN behind past_length: reading there would be seen.
        self.arrays = {
            f"{layer}.{part}": np.full((capacity, DIM), np.nan, np.float32)
            for layer in range(LAYERS)
            for part in ("key", "value")
        }
        self.inputs = np.full((capacity, DIM), np.nan, np.float32)

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def array(self, name: str) -> Any:
        return self.arrays[name.removeprefix("past_key_values.")]


class ToyDecoder:
    """A small causal transformer. ``log`` holds (past_length, s) of every run, ``rows`` (r, l)."""

    def __init__(self, table: Float, tokenizer: Tokenizer) -> None:
        rng = np.random.default_rng(5)
        self.weights = rng.normal(0, 0.5, (LAYERS, 4, DIM, DIM)).astype(np.float32)
        self.table = table
        self.tokenizer = tokenizer
        self.log: list[tuple[int, int]] = []
        self.rows: list[tuple[int, int]] = []
        self.caches = 0
        self.replies: dict[str, Sequence[int]] = {}
        self.fail = False

    @property
    def ports(self) -> StagePorts:
        return StagePorts("llm_decoder", (), ())

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        raise AssertionError("the session keeps a cache")

    def run_kept(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        raise AssertionError("the session keeps a cache")

    def new_cache(self, capacity: int) -> ToyCache:
        self.caches += 1
        return ToyCache(capacity)

    def run_with_cache(self, inputs: Mapping[str, Any], cache: Any) -> dict[str, Any]:
        x = inputs["inputs_embeds"][0]
        (start,) = inputs["past_length"]
        total = start + len(x)
        hidden_rows, logit_rows = inputs["hidden_rows"], inputs["logit_rows"]
        assert hidden_rows.dtype == logit_rows.dtype == np.int64
        assert len(hidden_rows) >= 1 and hidden_rows.min() >= 0 and hidden_rows.max() < len(x)
        assert len(logit_rows) >= 1 and 0 <= logit_rows.min() < len(hidden_rows)
        self.log.append((int(start), len(x)))
        self.rows.append((len(hidden_rows), len(logit_rows)))
        assert x.dtype == np.float32 and total <= cache.capacity
        cache.inputs[start:total] = x
        if self.fail:
            cache.arrays["0.key"][start:total] = 7.0
            raise RuntimeError("the device is gone")
        positions = np.arange(start, total)
        angles = (positions[:, None] / (3.0 ** np.arange(DIM // 2))).astype(np.float32)
        x = x + np.float32(0.3) * np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        for layer in range(LAYERS):
            query, key, value, out = self.weights[layer]
            cache.arrays[f"{layer}.key"][start:total] = x @ key
            cache.arrays[f"{layer}.value"][start:total] = x @ value
            scores = (x @ query / 4) @ cache.arrays[f"{layer}.key"][
                :total
            ].T  # 4 is the root of DIM
            scores[np.arange(total)[None, :] > positions[:, None]] = -np.inf
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            x = x + np.tanh(weights @ cache.arrays[f"{layer}.value"][:total] @ out)
        hidden = (x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5)).astype(np.float32)
        hidden = hidden[hidden_rows]
        logits = (hidden[logit_rows] @ self.table.T).astype(np.float32)
        if self.replies:
            for row, scores in zip(hidden_rows[logit_rows], logits, strict=True):
                scores[self._scripted(cache.inputs[: start + row + 1])] = 1e4
        return {"logits": logits, "hidden": hidden[None]}

    def _scripted(self, inputs: Float) -> int:
        """The next id of the reply to the last question in the cache."""
        known = {row.tobytes(): i for i, row in enumerate(self.table)}
        words = [known[row.tobytes()] for row in inputs if row.tobytes() in known]
        marker = self.tokenizer.encode([Text("ASSISTANT:")], bos=False)
        ends = [i for i in range(len(words)) if words[i - len(marker) : i] == marker]
        ends += [len(words)] if words[-len(marker) :] == marker else []
        said = words[ends[-1] :]
        question = self.tokenizer.decode([i for i in words[: ends[-1]] if i > 2]).rpartition(
            "USER:"
        )[2]
        reply = next((ids for part, ids in self.replies.items() if part in question), ())
        return int(reply[len(said)]) if len(said) < len(reply) else self.tokenizer.eos


class FunctionStage:
    """A stage made of a function; it hands out one buffer again and again, as a backend may."""

    def __init__(self, name: str, function: Callable[..., dict[str, Float]]) -> None:
        self.name = name
        self.function = function
        self.calls: list[dict[str, tuple[int, ...]]] = []
        self._last: dict[str, Float] = {}

    @property
    def ports(self) -> StagePorts:
        return StagePorts(self.name, (), ())

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        self.calls.append({name: array.shape for name, array in inputs.items()})
        outputs = self.function(**{name: array.copy() for name, array in inputs.items()})
        for array in self._last.values():
            array.fill(np.nan)
        self._last = outputs
        return dict(outputs)

    def run_kept(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        outputs = self.run(inputs)
        self._last = {}
        return outputs

    def new_cache(self, capacity: int) -> Any:
        raise AssertionError("no cache")

    def run_with_cache(self, inputs: Mapping[str, Any], cache: Any) -> dict[str, Any]:
        raise AssertionError("no cache")


def _vision(pixels: Float) -> dict[str, Float]:
    n, _, side, _ = pixels.shape
    blocks = pixels.reshape(n, 3, 2, side // 2, 2, side // 2).mean(axis=(3, 5)).reshape(n, 3, 4)
    weight = np.random.default_rng(1).normal(0, 1, (3, DIM))
    return {"image_tokens": (blocks.swapaxes(1, 2) @ weight).astype(np.float32)}


def _vision_with_states(pixels: Float) -> dict[str, Float]:
    tokens = _vision(pixels)["image_tokens"]
    states = np.concatenate([tokens.mean(axis=1, keepdims=True), tokens], axis=1)[:, :, :6]
    return {"image_tokens": tokens, "level1": tokens[:, :, 6:12].copy(), "states": states}


def _regions(pixels: Float, masks: Float, level1: Float, states: Float) -> dict[str, Float]:
    """Depends on every input: where the mask is, what is under it, and the picture's states."""
    count, _, height, width = masks.shape
    place = np.arange(height * width, dtype=np.float32) / (height * width)
    flat = masks.reshape(count, -1)
    under = flat @ np.c_[pixels.reshape(3, -1).T, place] / flat.sum(axis=1, keepdims=True)
    whole = np.r_[level1.mean(axis=(0, 1)), states.mean(axis=(0, 1))]
    inputs = np.c_[under, np.tile(whole, (count, 1))]
    weight = np.random.default_rng(2).normal(0, 9, (inputs.shape[1], DIM))
    return {"region_tokens": (inputs @ weight).astype(np.float32)}


def _backbone(pixels: Float) -> dict[str, Float]:
    def pooled(stride: int) -> Float:
        _, c, h, w = pixels.shape
        cut = pixels.reshape(1, c, h // stride, stride, w // stride, stride)
        mean: Float = cut.mean(axis=(3, 5)).astype(np.float32)
        return mean

    return {f"map{level}": pooled(2 ** (level + 1)) for level in (1, 2, 3, 4)}


def _encoder(
    map2: Float, map3: Float, map4: Float, valid_size: Any, text_states: Float
) -> dict[str, Float]:
    memory = np.concatenate([m.reshape(1, 3, -1) for m in (map2, map3, map4)], axis=2)
    return {"memory": memory.swapaxes(1, 2).copy(), "text": text_states.mean(axis=2)}


def _decoder(memory: Float, text: Float, valid_size: Any) -> dict[str, Float]:
    rng = np.random.default_rng(3)
    queries = rng.normal(0, 1, (1, QUERIES, DIM)) + memory.mean()
    boxes = rng.uniform(0.3, 0.6, (1, QUERIES, 4))
    return {
        "queries": queries.astype(np.float32),
        "logits": (queries @ text.swapaxes(1, 2) * 0.3).astype(np.float32),
        "boxes": (boxes + 0.05 * np.tanh(text.mean())).astype(np.float32),
    }


def _masks(map1: Float, memory: Float, queries: Float) -> dict[str, Float]:
    height, width = map1.shape[2:]
    ramp = np.linspace(-1, 1, height * width, dtype=np.float32).reshape(1, 1, height, width)
    return {"masks": ramp + queries.mean(axis=2)[:, :, None, None] * 0.5}


@dataclass
class ToyStages:
    """Stages by name; remembers what was asked for."""

    stages: dict[str, Any]
    asked: list[tuple[str, tuple[int, int] | None]] = field(default_factory=list)

    def get(self, name: str, bucket: tuple[int, int] | None = None) -> Any:
        self.asked.append((name, bucket))
        return self.stages[name]


class Toy:
    """A pipeline over toy stages, with everything a test wants to look at."""

    def __init__(
        self,
        capacity: int = 1200,
        max_text_len: int = 256,
        tokenizer: Tokenizer | None = None,
        *,
        regions: bool = False,
    ) -> None:
        rng = np.random.default_rng(0)
        more = ("<reg>", "</reg>", "<region>") if regions else ()
        self.tokenizer = tokenizer or toy_tokenizer(*more)
        self.table = rng.normal(0, 1, (self.tokenizer.size, DIM)).astype(np.float32)

        def link(name: str, tokens: tuple[str, ...], rows: int, decoder: str) -> SuperLink:
            return SuperLink(
                name, tokens, rng.normal(0, 1, (rows, DIM)).astype(np.float32), decoder
            )

        self.links = (
            link("det", ("[DET]", "[SEG]", "[GRD]"), ROWS, "detector"),
            link("pose", ("[POSE]",), ROWS, "pose"),
            link("gen", ("[GEN]",), 7, "gen"),
        )
        self.decoder = ToyDecoder(self.table, self.tokenizer)
        functions: dict[str, Callable[..., dict[str, Float]]] = {
            "vision_encoder": _vision,
            "det_backbone": _backbone,
            "det_encoder": _encoder,
            "det_decoder": _decoder,
            "det_masks": _masks,
        }
        if regions:
            functions |= {"vision_encoder": _vision_with_states, "region_encoder": _regions}
        self.stages = ToyStages({name: FunctionStage(name, f) for name, f in functions.items()})
        self.session = self.new_session(capacity)
        self.pipeline = VisionLLMv2(
            stages=self.stages,
            tokenizer=self.tokenizer,
            session=self.session,
            links=self.links,
            vision=VisionSettings(8, 4, 4, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
            detector=Detector(
                self.stages,
                DetectorSpec(
                    buckets=((64, 64), (64, 96)),
                    shortest_edge=64,
                    longest_edge=96,
                    divisor=32,
                    max_text_len=max_text_len,
                    num_queries=QUERIES,
                ),
                Normalization((120.0, 120.0, 120.0), (60.0, 60.0, 60.0)),
            ),
            template="vicuna_v1",
            regions=regions,
        )

    def text_pipeline(self, capacity: int = 1200) -> TextPipeline:
        """The language model alone."""
        session = self.new_session(capacity)
        return TextPipeline(tokenizer=self.tokenizer, session=session, template="vicuna_v1")

    def new_session(
        self, capacity: int = 1200, caches: int = 1, rows: int = 1200
    ) -> DecoderSession:
        """Every prompt takes one run; its words are letters here, so it is long."""
        table = EmbeddingTable(self.table)
        return DecoderSession(self.decoder, table, capacity=capacity, caches=caches, rows=rows)

    def reply(self, question: str, answer: Sequence[Segment]) -> None:
        """What the model says when the last question contains this text."""
        marker = self.tokenizer.encode([Text("ASSISTANT:")], bos=False)
        ids = self.tokenizer.encode([Text("ASSISTANT: "), *answer], bos=False)
        assert ids[: len(marker)] == marker
        self.decoder.replies[question] = ids[len(marker) :]

    def calls(self, stage: str) -> int:
        return len(self.stages.stages[stage].calls)


@pytest.fixture
def make_tokenizer() -> Callable[..., Tokenizer]:
    return toy_tokenizer


@pytest.fixture
def make_toy() -> Callable[..., Toy]:
    return Toy


@pytest.fixture
def toy() -> Toy:
    return Toy()


@pytest.fixture
def make_full() -> Callable[..., Toy]:
    """A toy with every decoder; ``without`` names one that is missing."""

    def make(capacity: int = 1600, **options: Any) -> Toy:
        from tests.runtime.full_toy import add_decoders

        toy: Toy = add_decoders(Toy(capacity, tokenizer=toy_tokenizer("[EDIT]")), **options)
        return toy

    return make


@pytest.fixture
def full(make_full: Callable[..., Toy]) -> Toy:
    return make_full()


@pytest.fixture
def photo() -> NDArray[np.uint8]:
    """A picture of 40x48 pixels (height, width)."""
    pixels = np.random.default_rng(9).integers(0, 255, (40, 48, 3))
    return pixels.astype(np.uint8)
