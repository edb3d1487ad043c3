"""Jacobians of reads by their queries, against differences; and what saturation does to softmax."""

import pytest
import torch

from echo_ska.experiments.recall.gradient_flow import query_jacobian
from echo_ska.nn import SoftmaxAttention, SpectralKoopmanAttention

MIXERS = {
    "ska": lambda: SpectralKoopmanAttention(16, num_heads=2, rank=4),
    "attention": lambda: SoftmaxAttention(16, num_heads=2),
}


@pytest.mark.parametrize("name", MIXERS)
def test_the_jacobian_is_that_of_a_change_of_the_query(name):
    torch.manual_seed(0)
    mixer = MIXERS[name]().double()
    hidden, positions = torch.randn(1, 9, 16, dtype=torch.float64), torch.tensor([2, 8])
    jacobian, query, output = query_jacobian(mixer, hidden, positions)
    assert jacobian.shape == (2, 16, query.shape[1])
    change = 1e-6 * torch.randn_like(query)

    def changed(module, arguments, result):
        moved = result[0].clone()
        moved[0, positions] += change.view(2, *moved.shape[2:])
        return moved, *result[1:]

    handle = mixer.qkv.register_forward_hook(changed)
    with torch.no_grad():
        moved = mixer(hidden)[0][0, positions]
    handle.remove()
    expected = torch.einsum("nij,nj->ni", jacobian, change)
    assert torch.allclose(moved - output, expected, atol=1e-3 * expected.abs().max())


def test_a_saturated_softmax_gives_its_query_no_gradient_and_ska_does():
    torch.manual_seed(0)
    hidden = torch.randn(1, 9, 16, dtype=torch.float64)
    norms = {}
    for name, build in MIXERS.items():
        mixer = build().double()
        with torch.no_grad():
            mixer.qkv.q_proj.weight.mul_(300)
        jacobian, query, output = query_jacobian(mixer, hidden, torch.tensor([8]))
        norms[name] = float(jacobian.norm() * query.norm() / output.norm())
    assert norms["attention"] < 1e-3 < 0.1 < norms["ska"]
