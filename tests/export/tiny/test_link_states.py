import torch

from visionllm_edge.export.components.llm_decoder import Llama
from visionllm_edge.export.config import LlmConfig
from visionllm_edge.export.tiny.link_states import join, link_states, read_prompts

CONFIG = LlmConfig(
    vocab_size=50,
    hidden_size=24,
    intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    max_position_embeddings=64,
)


def _llm() -> Llama:
    torch.manual_seed(0)
    llm = Llama(CONFIG).eval()
    for parameter in llm.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return llm.requires_grad_(False)


def test_states_are_those_of_one_pass_over_everything() -> None:
    llm = _llm()
    prompts = [[1, 5, 9, 2, 30], [1, 7], [1, 5, 9, 40, 41, 42, 43, 2]]
    table = torch.randn(6, 24)
    states = link_states(llm, read_prompts(llm, prompts), table)
    for row, prompt in zip(states, prompts, strict=True):
        embeds = torch.cat([llm.model.embed_tokens(torch.tensor(prompt)), table])[None]
        whole = llm.teacher_forced(embeds)[0, len(prompt) :]
        torch.testing.assert_close(row, whole, atol=1e-5, rtol=1e-4)


def test_the_picture_takes_its_places() -> None:
    llm = _llm()
    image = torch.randn(2, 3, 24)
    prompts = [[1, 5, 4, 4, 4, 8, 9], [1, 5, 4, 4, 4, 11]]
    table = torch.randn(2, 24)
    states = link_states(llm, read_prompts(llm, prompts, image=image, image_id=4), table)
    for row, prompt, picture in zip(states, prompts, image, strict=True):
        words = llm.model.embed_tokens(torch.tensor(prompt))
        embeds = torch.cat([words[:2], picture, words[5:], table])[None]
        whole = llm.teacher_forced(embeds)[0, len(prompt) :]
        torch.testing.assert_close(row, whole, atol=1e-5, rtol=1e-4)


def test_kept_prompts_can_be_put_together() -> None:
    llm = _llm()
    table = torch.randn(4, 24)
    prompts = [[1, 5, 9], [1, 7, 8, 9, 10, 11]]
    apart = join([read_prompts(llm, [prompt]) for prompt in prompts])
    torch.testing.assert_close(
        link_states(llm, apart, table),
        link_states(llm, read_prompts(llm, prompts), table),
        atol=1e-5,
        rtol=1e-4,
    )


def test_the_table_learns() -> None:
    llm = _llm()
    table = torch.randn(4, 24, requires_grad=True)
    link_states(llm, read_prompts(llm, [[1, 5]]), table).square().sum().backward()  # type: ignore[no-untyped-call]
    assert table.grad is not None
    assert bool((table.grad.abs().amax(dim=1) > 0).all())
