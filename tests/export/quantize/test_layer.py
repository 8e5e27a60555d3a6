import torch

from tests.export.quantize.small_llama import CONFIG, SmallLlama
from visionllm_edge.export.components.llm_decoder import Llama
from visionllm_edge.export.quantize.layer import LayerRunner, layer_names, read_layer


def test_layers_compute_what_the_model_does() -> None:
    weights = SmallLlama()
    model = Llama(CONFIG)
    model.load_state_dict(weights.tensors)
    x = torch.randn(1, 20, CONFIG.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.teacher_forced(x)[0]
        rows, runner = x[0], LayerRunner(CONFIG, 20)
        for layer in range(CONFIG.num_hidden_layers):
            rows = runner.run(read_layer(weights, layer), rows)
        torch.testing.assert_close(model.model.norm(rows), expected, atol=1e-4, rtol=1e-4)


def test_what_is_watched_is_what_the_linears_read() -> None:
    weights = SmallLlama()
    x = torch.randn(9, CONFIG.hidden_size, generator=torch.Generator().manual_seed(1))
    layer, seen = read_layer(weights, 0), dict[str, torch.Tensor]()
    out = LayerRunner(CONFIG, 9).run(layer, x, seen.__setitem__)
    assert {name: rows.shape for name, rows in seen.items()} == {
        "qkv": (9, 128), "o": (9, 128), "gate_up": (9, 128), "down": (9, 192),
    }  # fmt: skip
    # Rows of `down` are divided by the size of the stream that its output is added to.
    size = out.pow(2).mean(dim=-1, keepdim=True).sqrt()
    gated = torch.nn.functional.silu(seen["gate_up"] @ layer["gate_proj"].T)
    gated *= seen["gate_up"] @ layer["up_proj"].T
    torch.testing.assert_close(seen["down"] * size, gated, atol=1e-4, rtol=1e-4)


def test_a_layer_read_is_a_copy() -> None:
    weights = SmallLlama()
    read_layer(weights, 0)["input_layernorm"] *= 0
    assert weights.tensors[layer_names(0)["input_layernorm"]].abs().min() > 0
