"""What flash-linear-attention is asked to compute, held to our own scans through the definitions of its functions."""

from __future__ import annotations

import pytest
import torch
from textbook import RECURRENCES, random_tokens

from echo_ska.nn.fla import fla_function, kernel_for, scan_by
from echo_ska.nn.peers import DeltaNet, GatedDeltaNet, GatedLinearAttention, LinearAttention

KINDS = [kind for kind in RECURRENCES if kind.kernel is not None]


def outer(key, value):
    return key[..., :, None] * value[..., None, :]


def linear(S, q, k, v):
    return S + outer(k, v)


def gated(S, q, k, v, g):
    return g.exp()[..., None] * S + outer(k, v)


def gated_delta(S, q, k, v, beta, g):
    S = g.exp()[..., None, None] * S
    held = (k[..., None, :] @ S)[..., 0, :]
    return S + outer(k, beta[..., None] * (v - held))


DEFINITIONS = {
    "fla.ops.simple_gla.chunk_simple_gla": linear,
    "fla.ops.gla.chunk_gla": gated,
    "fla.ops.gated_delta_rule.chunk_gated_delta_rule": gated_delta,
}


def defined(name):
    """A function of the kernel's signature: o_t = scale q_t^T S_t with S [N, H, r, P], one token after the other."""

    def kernel(*, scale, initial_state, output_final_state, **tokens):
        assert output_final_state
        state, reads = initial_state, []
        for t in range(tokens["q"].shape[1]):
            token = {name: tensor[:, t] for name, tensor in tokens.items()}
            state = DEFINITIONS[name](state, **token)
            reads.append(scale * (token["q"][..., None, :] @ state)[..., 0, :])
        return torch.stack(reads, dim=1), state

    return kernel


@pytest.mark.parametrize("kind", KINDS)
def test_the_function_asked_for_is_the_recurrence(kind):
    tokens = [tensor.requires_grad_() for tensor in random_tokens(kind, length=20, hard=True)]
    memory = torch.randn(2, 2, 6, 8, dtype=torch.float64, requires_grad=True)
    mixer = kind(32, num_heads=2, rank=8, head_dim=6)
    results = [
        mixer.scan(memory, *tokens),
        scan_by(defined(kind.kernel), memory, kind.kernel_arguments(*tokens)),
    ]
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    gradients = [torch.autograd.grad(read.sin().sum() + last.cos().sum(), [memory, *tokens]) for read, last in results]
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_these_have_a_kernel():
    assert set(KINDS) == {LinearAttention, DeltaNet, GatedDeltaNet, GatedLinearAttention}
    assert kernel_for(DeltaNet.kernel, torch.zeros(1, 9, 2, 4)) is None  # on a CPU
    assert fla_function("fla_of_no_such_name.ops.chunk") is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernels run on a GPU alone")
@pytest.mark.parametrize("kind", KINDS)
def test_the_kernel_is_the_recurrence(kind):
    pytest.importorskip("fla", exc_type=ImportError)
    tokens = [t.float().cuda().requires_grad_() for t in random_tokens(kind, length=130, rank=16, width=32)]
    memory = torch.randn(2, 2, 32, 16, device="cuda", requires_grad=True)
    mixer = kind(32, num_heads=2, rank=16, head_dim=32).cuda()
    found = mixer.scan(memory, *tokens)
    expected = mixer.double().scan(memory.double(), *(tensor.double() for tensor in tokens))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.float(), rtol=0, atol=5e-3 * float(other.abs().max()))
    gradients = [
        torch.autograd.grad(read.sin().sum() + last.cos().sum(), [memory, *tokens]) for read, last in (found, expected)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-2 * float(other.abs().max()))
