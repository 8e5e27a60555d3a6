import torch
from torch import nn

from visionllm_edge.export.tiny.muon import Muon, orthogonal


def test_all_singular_values_become_about_one() -> None:
    torch.manual_seed(0)
    for shape in ((8, 40), (40, 8), (16, 16)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape) * 30))
        assert float(values.min()) > 0.6
        assert float(values.max()) < 1.3


def test_directions_stay_what_they_were() -> None:
    torch.manual_seed(1)
    u, _, v = torch.linalg.svd(torch.randn(6, 9), full_matrices=False)
    matrix = u @ torch.diag(torch.tensor([9.0, 5.0, 2.0, 1.0, 0.5, 0.3])) @ v
    assert float((orthogonal(matrix) - u @ v).abs().max()) < 0.25


def test_a_step_has_the_size_that_was_asked_for() -> None:
    torch.manual_seed(2)
    weight = nn.Parameter(torch.randn(12, 4, 3, 3))
    before = weight.detach().clone()
    weight.grad = torch.randn_like(weight) * 1e-6
    Muon([weight], lr=0.1, weight_decay=0.0).step()
    size = float((weight.detach() - before).square().mean().sqrt())
    assert 0.7 * 0.02 < size < 1.3 * 0.02


def test_it_finds_the_weights_of_a_convolution() -> None:
    torch.manual_seed(3)
    wanted, conv = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(3, 8, 3, bias=False)
    optimizer = Muon(conv.parameters(), lr=0.2)
    losses = []
    for step in range(60):
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 60)
        x = torch.randn(16, 3, 6, 6)
        loss = (conv(x) - wanted(x).detach()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.05 * losses[0]
