"""Chat templates: one that is ours by every character gets its name, no other one does."""

from __future__ import annotations

import pytest

from visionllm_edge.export.llm.chat_template import named_template
from visionllm_edge.runtime.manifest import PromptSpec
from visionllm_edge.runtime.prompts import system_prompt

# As small models that speak ChatML have it, with a system text when none is given.
WITH_SYSTEM = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' \
%}{{ '<|im_start|>system\nYou are an owl.<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + \
message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
WITHOUT_SYSTEM = """
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
VICUNA = (
    "{{ bos_token }}" + system_prompt("vicuna_v1") + " {% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ASSISTANT:' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
BORED = system_prompt("vicuna_v1").replace("curious", "bored")
INSTRUCTIONS = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}"
    "{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize(
    ("source", "bos", "expected"),
    [
        (WITH_SYSTEM, "<s>", PromptSpec("chatml", "You are an owl.")),
        # BOS is the token that opens every turn: it must not be mistaken for a prefix.
        (WITH_SYSTEM, "<|im_start|>", PromptSpec("chatml", "You are an owl.")),
        (WITHOUT_SYSTEM, "", PromptSpec("chatml")),
        ("{{ bos_token }}" + WITHOUT_SYSTEM, "<s>", PromptSpec("chatml")),
        (VICUNA, "<s>", PromptSpec("vicuna_v1")),
        (VICUNA.replace("curious", "bored"), "<s>", PromptSpec("vicuna_v1", BORED)),
    ],
)
def test_known_templates(source: str, bos: str, expected: PromptSpec) -> None:
    eos = "</s>" if "USER" in source else "<|im_end|>"
    assert named_template(source, bos=bos, eos=eos) == expected


@pytest.mark.parametrize(
    "source",
    [
        INSTRUCTIONS,
        WITHOUT_SYSTEM.replace("<|im_end|>\n", "<|im_end|>"),
        WITHOUT_SYSTEM.replace("assistant\n", "assistant\nLet me think."),
        WITHOUT_SYSTEM.replace("message.content", "message.content | upper"),
        WITH_SYSTEM.replace("an owl.", "an owl on {{ strftime_now('%d') }}."),
        WITH_SYSTEM.replace("loop.first", "loop.last"),
        VICUNA.replace("' ASSISTANT:'", "' ASSISTANT: '"),
        VICUNA.replace(system_prompt("vicuna_v1") + " ", ""),
        "{{ raise_exception('no') }}",
        "{% for %}",
        "{{ messages.__class__.__mro__ }}",
        "",
    ],
)
def test_other_templates_get_no_name(source: str) -> None:
    assert named_template(source, bos="<s>", eos="<|im_end|>") is None
