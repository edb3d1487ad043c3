"""`skip_logits` gives the loss of the logits, counts what they would have shown, and says where it cannot be had."""

from __future__ import annotations

import pytest
import torch
import torch.nn.utils.prune
from small_models import KINDS, ids, small_model
from torch import nn

from echo_ska.tasks import accuracy


@pytest.mark.parametrize("tied", [False, True], ids=["own head", "tied head"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_gradients_and_counts_are_those_of_the_logits(kind, tied):
    model = small_model(kind, tie_word_embeddings=tied).train()
    tokens = ids(3, 21)
    labels = tokens.masked_fill(torch.rand(tokens.shape, generator=torch.Generator().manual_seed(2)) < 0.3, -100)
    results = []
    for skip in (False, True):
        output = model(input_ids=tokens, labels=labels, skip_logits=skip)
        output.loss.backward()
        results.append((output, {name: parameter.grad for name, parameter in model.named_parameters()}))
        model.zero_grad(set_to_none=True)
    (whole, expected), (fused, found) = results
    torch.testing.assert_close(fused.loss, whole.loss)
    assert fused.logits is None
    assert whole.correct is whole.scored is None
    assert (int(fused.correct), int(fused.scored)) == accuracy(whole.logits, labels)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_hugging_faces_keywords_mean_the_same():
    model, tokens = small_model("ssm+ska"), ids(2, 9)
    shifted = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-100)
    for keywords in (
        {"num_items_in_batch": torch.tensor(40)},
        {"ignore_index": int(tokens[0, 4])},
        {"shift_labels": shifted.roll(1)},
    ):
        losses = [model(tokens, labels=tokens, skip_logits=skip, **keywords).loss for skip in (False, True)]
        torch.testing.assert_close(*losses)
        assert not torch.isclose(losses[1], model(tokens, labels=tokens, skip_logits=True).loss, rtol=1e-6)


def test_a_tuple_begins_with_the_loss_and_has_the_counts():
    model, tokens = small_model("ssm"), ids(1, 5)
    loss, *rest = model(tokens, labels=tokens, skip_logits=True, return_dict=False, use_cache=False)
    correct, scored = rest
    assert loss.dim() == 0
    assert 0 <= correct <= scored == 4


def test_what_is_refused():
    model, tokens = small_model("ssm"), ids(1, 5)
    for arguments in ({}, {"labels": tokens, "logits_to_keep": 1}, {"labels": tokens, "logits_to_keep": torch.ones(1)}):
        with pytest.raises(ValueError, match="give labels, and no logits_to_keep"):
            model(tokens, skip_logits=True, **arguments)
    model.lm_head = nn.Sequential(model.lm_head)
    with pytest.raises(ValueError, match=r"linear head without a bias, hooks or .*, not from this Sequential"):
        model(tokens, labels=tokens, skip_logits=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda head: head.register_forward_hook(lambda _, __, logits: 10 * (logits / 10).tanh()),
        lambda head: nn.utils.prune.l1_unstructured(head, "weight", 0.5),
        lambda head: nn.utils.parametrizations.weight_norm(head),
    ],
    ids=["a hook", "pruned", "weight norm"],
)
def test_a_head_that_is_more_than_its_weight_keeps_its_logits(change):
    model, tokens = small_model("ssm"), ids(1, 5)
    assert model.can_skip_logits
    change(model.lm_head)
    assert not model.can_skip_logits
    with pytest.raises(ValueError, match="linear head without a bias, hooks or a weight that is computed"):
        model(tokens, labels=tokens, skip_logits=True)
