"""Float64 without a copy of the weights: the same as a float64 copy, and nothing is changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from visionllm_edge.export.wide_run import in_float64


class Casting(nn.Module):
    """Asks a weight for its type, slices weights, and writes to a tensor of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(8, 6))
        self.shift = nn.Buffer(torch.randn(6))
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.table.dtype) @ self.table[:6].T
        out = torch.zeros_like(x)
        out += x + self.shift
        out[:, 0] = 0.5
        return torch.cat([self.norm(out), self.table[6:].expand(len(out), -1, -1)[:, 0]], dim=-1)


MODULES = {
    "convolution": nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.GELU(), nn.Flatten()),
    "attention": nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True),
    "casts": Casting(),
    "embedding": nn.Embedding(10, 4),
}
INPUTS = {
    "convolution": torch.randn(2, 3, 9, 9),
    "attention": torch.randn(2, 5, 8),
    "casts": torch.randn(3, 6),
    "embedding": torch.tensor([[1, 9]]),
}


@pytest.mark.parametrize("name", MODULES)
def test_same_as_a_float64_copy(name: str) -> None:
    module, x = MODULES[name].eval(), INPUTS[name]
    wide = x.double() if x.is_floating_point() else x
    before = copy.deepcopy(module.state_dict())
    with torch.no_grad():
        expected = copy.deepcopy(module).double()(wide)
        with in_float64(module):
            got = module(wide)
        narrow = module(x)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, expected, rtol=1e-13, atol=1e-13)
    if name != "embedding":  # a table's rows are exact in both
        assert (narrow.double() - expected).abs().max() > 1e-9
    for key, tensor in module.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, before[key])


def test_other_float32_tensors_stay() -> None:
    with in_float64(nn.Linear(2, 2)):
        assert (torch.ones(2) + torch.ones(2)).dtype == torch.float32
