"""Tokenizer and conversation template of a language model, from wherever its weights come.

A `tokenizer.json` is taken as it is; a SentencePiece model or the header of a GGUF file is
converted to one. All special tokens become controls: no text that a user types gives one of their
ids. Which conversation template the checkpoint means is found out by running it; one that the
runtime does not have is never guessed at: the bundle then takes bare text, and a warning says so.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from visionllm_edge.export.llm.chat_template import named_template
from visionllm_edge.export.llm.gguf_file import GgufWeights
from visionllm_edge.export.llm.gguf_tokenizer import read_gguf_tokenizer
from visionllm_edge.export.llm.hf_folder import LlamaFolder, VisionLLMWeights
from visionllm_edge.export.llm.weights import LlmWeights
from visionllm_edge.export.tokenizer import (
    ConvertedTokenizer,
    checked_definition,
    convert_tokenizer,
    read_settings,
    sentencepiece_definition,
)
from visionllm_edge.runtime.errors import CheckpointError
from visionllm_edge.runtime.manifest import PromptSpec
from visionllm_edge.runtime.prompts import CHATML, PLAIN, end_of_answer

__all__ = ["convert_llm_tokenizer"]

_log = logging.getLogger(__name__)


def convert_llm_tokenizer(weights: LlmWeights) -> tuple[ConvertedTokenizer, PromptSpec]:
    """What a bundle needs of an opened model's tokenizer, and its conversation template.

    Raises:
        CheckpointError: no tokenizer, an unreadable one, or ids that do not fit the model.
        ConfigError: a kind of tokenizer that is not supported.
    """
    if isinstance(weights, GgufWeights):
        header = read_gguf_tokenizer(weights)
        return _finished(
            header.definition,
            source=weights.path.name,
            bos=header.bos if header.add_bos else None,
            first=header.bos,
            eos=header.eos,
            space_after_control=header.space_after_control,
            chat_template=header.chat_template,
            vocab_size=weights.config.vocab_size,
        )
    if isinstance(weights, LlamaFolder):
        return _from_folder(weights.folder, weights.config.vocab_size)
    if isinstance(weights, VisionLLMWeights):
        checkpoint = weights.checkpoint
        vocab_size = weights.config.vocab_size
        template = checkpoint.config.deployment.template
        return convert_tokenizer(checkpoint.folder, vocab_size=vocab_size), PromptSpec(template)
    raise TypeError(f"no tokenizer comes with {type(weights).__name__}")


def _from_folder(folder: Path, vocab_size: int) -> tuple[ConvertedTokenizer, PromptSpec]:
    settings = read_settings(folder / "tokenizer_config.json")
    pieces = (folder / "tokenizer.model").is_file()
    if (folder / "tokenizer.json").is_file():
        definition = checked_definition(folder / "tokenizer.json")
    elif pieces:
        definition = sentencepiece_definition(folder, settings)
    else:
        raise CheckpointError(
            f"checkpoint '{folder}': no tokenizer found. Expected tokenizer.json, or "
            "tokenizer.model."
        )
    loaded = tokenizers.Tokenizer.from_str(definition)
    bos = _token_id(folder, loaded, settings, "bos_token", "<s>" if pieces else None)
    eos = _token_id(folder, loaded, settings, "eos_token", "</s>" if pieces else None)
    if eos is None:
        raise CheckpointError(
            f"checkpoint '{folder}': expected a token that ends an answer, got none: neither "
            "tokenizer_config.json (eos_token) nor config.json (eos_token_id) names one."
        )
    if (folder / "tokenizer.json").is_file():
        add_bos = loaded.encode("a", add_special_tokens=True).ids[:1] == [bos]
        space_after_control = _prefixed_after(loaded, eos)
    else:  # as for LLaMA's slow tokenizer
        add_bos, space_after_control = True, bool(settings.get("legacy", True))
    if str(settings.get("tokenizer_class", "")).startswith("Llama"):  # only these heed the flag
        add_bos = bool(settings.get("add_bos_token", add_bos))
    return _finished(
        definition,
        source=str(folder),
        bos=bos if add_bos else None,
        first=bos,
        eos=eos,
        space_after_control=space_after_control,
        chat_template=_chat_template(folder, settings),
        vocab_size=vocab_size,
    )


def _finished(
    definition: str,
    *,
    source: str,
    bos: int | None,
    first: int | None,
    eos: int,
    space_after_control: bool,
    chat_template: str | None,
    vocab_size: int,
) -> tuple[ConvertedTokenizer, PromptSpec]:
    """The two results; ``first`` is the id of BOS whether or not it is put first."""
    added = json.loads(definition).get("added_tokens") or ()
    ids = {str(token["content"]): int(token["id"]) for token in added}
    controls = {str(token["content"]): int(token["id"]) for token in added if token["special"]}
    names = {number: name for name, number in ids.items()}
    prompt = PromptSpec(PLAIN)
    if chat_template is not None:
        found = named_template(
            chat_template, bos="" if first is None else names.get(first, ""), eos=names.get(eos, "")
        )
        marks = {"<|im_start|>", "<|im_end|>"}
        if found is not None and (found.template != CHATML or marks <= set(ids)):
            prompt = found
        else:
            _log.warning(
                "%s: its chat template is none of those this runtime has; prompts are taken as "
                "plain text",
                source,
            )
    if prompt.template == CHATML:
        controls |= {name: ids[name] for name in marks}
        eos = ids[end_of_answer(CHATML).name]
    highest = max((*controls.values(), eos, first or 0))
    if highest >= vocab_size:
        raise CheckpointError(
            f"'{source}': control token id {highest}: expected ids below {vocab_size}, the rows of "
            "the embedding table. Tokenizer and weights do not belong together."
        )
    converted = ConvertedTokenizer(
        definition=definition,
        controls=controls,
        bos=bos,
        eos=eos,
        space_after_control=space_after_control,
    )
    return converted, prompt


def _token_id(
    folder: Path,
    loaded: tokenizers.Tokenizer,
    settings: Mapping[str, Any],
    field: str,
    default: str | None,
) -> int | None:
    """Id of the token that a field names: by text in the tokenizer's settings, else by number."""
    named = settings.get(field)
    text = named.get("content") if isinstance(named, dict) else named
    if text is None:
        number = read_settings(folder / "config.json").get(f"{field}_id")
        number = number[0] if isinstance(number, list) and number else number
        if isinstance(number, int):
            return number
        text = default
    if text is None:
        return None
    found = loaded.token_to_id(text)
    if found is None:
        raise CheckpointError(
            f"checkpoint '{folder}': {field}: expected a token of the vocabulary, got {text!r}."
        )
    return int(found)


def _prefixed_after(loaded: tokenizers.Tokenizer, control: int) -> bool:
    """Whether a text after a control token is encoded as at the start of a string."""
    ids = loaded.encode("a", add_special_tokens=False).ids
    name = loaded.id_to_token(control)
    after = loaded.encode(f"{name}a", add_special_tokens=False).ids
    return bool(after == [control, *ids])


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    source = settings.get("chat_template")
    if isinstance(source, list):  # several by name
        named = {entry.get("name"): entry.get("template") for entry in source}
        source = named.get("default")
    return source if isinstance(source, str) else None
