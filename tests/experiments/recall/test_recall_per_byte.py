"""What is changed in SKA, within its bytes, and what is called a gain."""

import pytest
import torch
from made_up import of_trial

from echo_ska.experiments.recall import mqar_frontier
from echo_ska.experiments.recall.mqar_frontier import BUDGETS, counted_bytes
from echo_ska.experiments.recall.recall_per_byte import (
    BUDGET,
    ONE_HEBBIAN,
    START,
    VARIANTS,
    arms,
    comparison,
    gain,
    hebbian_gram_bytes,
    rows,
    trials,
)
from echo_ska.experiments.trials.changes import ska_layers
from echo_ska.training.optimizer import parameter_groups

ARMS = {arm.name: arm for arm in arms()}


def built(name):
    return ARMS[name].build(512, seed=0)


def test_every_variant_keeps_to_the_budget_and_differs_from_the_start():
    assert BUDGET in BUDGETS
    start = built(START).state_dict()
    for name, arm in ARMS.items():
        unneeded = hebbian_gram_bytes(arm.fields["rank"]) if name == ONE_HEBBIAN else 0
        assert counted_bytes(arm.config(512)) - unneeded <= BUDGET
        other = built(name).state_dict()
        differs = [key for key in start if key not in other or not torch.equal(start[key], other[key])]
        scaled = any("x10" in group["name"] for group in parameter_groups(built(name), 1e-3, 0.1))
        assert bool(differs) or scaled or name == START
        assert scaled == (name == "ridge learns ten times faster")


def test_a_hebbian_head_leaves_its_gram_matrix_to_the_rank():
    assert hebbian_gram_bytes(3) == 4 * 2 * 6
    assert ARMS[ONE_HEBBIAN].fields["rank"] == ARMS[START].fields["rank"] + 1


def test_the_start_is_the_frontiers_own_model():
    frontier = {arm.name: arm for arm in mqar_frontier.arms((BUDGET,))}
    assert dict(frontier["ska, power 0, 8 kB"].fields) == dict(ARMS[START].fields)


def test_keys_start_delayed_in_one_head_of_two():
    qkv = ska_layers(built("keys of one head of the two not delayed"))[0].qkv
    taps = qkv.convolution.weight[qkv.widths[0] : sum(qkv.widths[:2])].view(2, qkv.key_dim, -1)
    for head, place in ((0, 1), (1, 0)):
        assert torch.equal(taps[head], torch.eye(taps.shape[-1])[place].expand_as(taps[head]))


@pytest.mark.parametrize(("name", "ridge"), [("ridge starts at 0.1", 0.1), ("ridge starts at 10", 10.0), (START, 1.0)])
def test_ridges_start(name, ridge):
    for ska in ska_layers(built(name)):
        torch.testing.assert_close(ska.ridge, torch.full_like(ska.ridge, ridge))


def test_products_are_read_step_by_step_as_at_once():
    network = built("products of two coordinates as keys").eval()
    ids = torch.randint(512, (2, 12))
    with torch.no_grad():
        whole = network(input_ids=ids).logits
        cache, stepped = None, []
        for token in ids.split(1, dim=1):
            output = network(input_ids=token, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            stepped.append(output.logits)
    torch.testing.assert_close(torch.cat(stepped, 1), whole, rtol=1e-5, atol=1e-5)
    ska = ska_layers(network)[0]
    hidden = torch.randn(1, 3, 64)
    query = ska.head_inputs(hidden)[0].query
    plain = ska.qkv(hidden)[0]
    assert query.shape[-1] == ska.rank == 13
    assert plain.shape[-1] == 5  # of 15 products
    first = query[0, 1, 0] / query[0, 1, 0, 0]
    torch.testing.assert_close(first[1], plain[0, 1, 0, 1] / plain[0, 1, 0, 0], rtol=1e-4, atol=1e-4)


def test_a_gain_is_starred_where_all_seeds_show_it():
    def answered(values):
        trial = trials()[0]
        return [of_trial(trial.with_(seed=seed), lambda *_, of=of: of) for seed, of in enumerate(values)]

    results = {
        START: answered((0.5, 0.6)),
        "one wide head": answered((0.61, 0.7)),
        "ridge starts at 10": answered((0.5, 0.9)),
    }
    assert gain(results, "one wide head") == (pytest.approx(10.5), True)
    assert gain(results, "ridge starts at 10") == (pytest.approx(15.0), False)
    table = rows(results)
    assert [row[5] for row in table] == ["gain", "", "+10.5 *", "+15.0"]
    assert {len(row) for row in table} == {len(table[0])}


def test_it_is_tuned_as_the_frontier_is():
    ours, theirs = comparison(), mqar_frontier.comparison()
    assert (ours.rates, ours.tuned_on, ours.tuning_steps) == (theirs.rates, theirs.tuned_on, theirs.tuning_steps)
    assert [trial.arm.name for trial in ours.trials] == list(VARIANTS)
