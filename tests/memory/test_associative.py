"""Laws of the associative memory: it is ridge regression and exact DMD, and it adds, subtracts and stays small."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import assert_same
from sklearn.linear_model import Ridge

from echo_ska.algebra import SufficientStatistics, read
from echo_ska.memory import AssociativeMemory
from echo_ska.memory.pairs import BLOCK

RANK, HEAD_DIM = 5, 3
# name -> the axes of a memory, and the shape of its tensors around the time axis
LAYOUTS = {
    "one": ({}, (), ()),
    "heads": ({"num_heads": 2}, (), (2,)),
    "batch": ({"batch_size": 3}, (3,), ()),
    "batch and heads": ({"batch_size": 3, "num_heads": 2}, (3,), (2,)),
}
READS = {
    "ridge regression": {},
    "power": {"power": 2, "gain": 1.1},
    "blend": {"power": 2, "gain": 0.9, "blend": 0.3},
}


def pairs(count, layout="one", seed=0, integer=False):
    """Keys, values and weights of `count` pairs; integers, on request, whose sums are exact in any order."""
    _, before, after = LAYOUTS[layout]
    generator = torch.Generator().manual_seed(seed)

    def numbers(*width):
        shape = (*before, count, *after, *width)
        if integer:
            return torch.randint(-4, 5, shape, generator=generator).double()
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return numbers(RANK), numbers(HEAD_DIM), numbers().abs()


def memory_of(*written, layout="one", **settings):
    """A memory that wrote one (keys, values, weights) after the other."""
    memory = AssociativeMemory(RANK, HEAD_DIM, **LAYOUTS[layout][0], **settings)
    for keys, values, weights in written:
        memory.write(keys, values, weights)
    return memory


def cut(data, layout, begin, end):
    axis = len(LAYOUTS[layout][1])
    return tuple(tensor.narrow(axis, begin, end - begin) for tensor in data)


def assert_identical(memory, other):
    """To the last bit."""
    expected = other.statistics.tensors()
    for name, tensor in memory.statistics.tensors().items():
        assert torch.equal(tensor, expected[name]), name
    assert memory.settings == other.settings
    assert memory.lag_is_exact == other.lag_is_exact


def assert_alike(memory, other, tolerance):
    assert_same(memory.statistics.tensors(), other.statistics.tensors(), tolerance)


@pytest.mark.parametrize("settings", READS.values(), ids=READS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_reads_by_the_one_equation(layout, settings):
    """Each batch row and head is a memory of its own, and its read is the algebra's on all its pairs at once."""
    keys, values, weights = pairs(40, layout)
    queries = pairs(7, layout, seed=1)[0]
    answers = memory_of((keys, values, weights), layout=layout, ridge=0.4, **settings).read(queries)
    _, before, after = LAYOUTS[layout]
    assert answers.shape == (*before, 7, *after, HEAD_DIM)

    def expanded(tensor, width):
        tensor = tensor if before else tensor.unsqueeze(0)
        return tensor if after else tensor.unsqueeze(2 if width or tensor.dim() == 2 else -1)

    statistics = SufficientStatistics.from_tokens(
        expanded(keys, True), expanded(values, True), weights.reshape(*(before or (1,)), 40, *(after or (1,)))
    )
    blend = settings.get("blend")
    expected = read(
        statistics,
        expanded(queries, True).transpose(1, 2),
        ridge=torch.tensor(0.4, dtype=torch.float64),
        power=settings.get("power", 0),
        gain=settings.get("gain", 1.0),
        blend=None if blend is None else torch.full((1,), blend, dtype=torch.float64),
    )
    expected = expected.transpose(1, 2).reshape(answers.shape)
    assert_same({"answers": answers}, {"answers": expected}, 1e-12)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ridge", [1e-3, 1.0, 30.0])
def test_power_zero_is_ridge_regression_without_intercept(ridge, weighted):
    keys, values, weights = pairs(60)
    weights = weights if weighted else None
    queries = pairs(20, seed=1)[0]
    peer = Ridge(alpha=ridge, fit_intercept=False)
    peer.fit(keys.numpy(), values.numpy(), sample_weight=None if weights is None else weights.numpy())
    answers = memory_of((keys, values, weights), ridge=ridge).read(queries)
    assert_same({"answers": answers}, {"answers": torch.from_numpy(peer.predict(queries.numpy()))}, 1e-9)


def test_power_one_answers_with_the_value_one_pair_later():
    keys = torch.eye(4).double()[torch.arange(41) % 4]
    values = (torch.arange(41) % 4).double().unsqueeze(1)
    for power in range(4):
        memory = AssociativeMemory(4, 1, ridge=1e-9, power=power)
        memory.write(keys, values)
        assert float(memory.read(keys[:1])) == pytest.approx(power, abs=0.5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("boundary", [1, 17, 49])
def test_merging_equals_one_memory_that_wrote_both(layout, boundary):
    """Exactly (torch.equal), the step at the boundary included: each part was one call, so the sums are the same."""
    data = pairs(50, layout)
    parts = cut(data, layout, 0, boundary), cut(data, layout, boundary, 50)
    merged, second = memory_of(parts[0], layout=layout, power=2), memory_of(parts[1], layout=layout, ridge=7.0)
    before = second.fork()
    merged.merge(second)
    assert_identical(merged, memory_of(*parts, layout=layout, power=2))
    assert_identical(second, before)
    assert_alike(merged, memory_of(data, layout=layout), 1e-13)  # in one call the order of the sums is another
    assert merged.count == 50


def test_merging_is_associative_and_an_empty_memory_changes_nothing():
    """Sums of sums in another order: exactly for integers, whose sums have no rounding, else to 1e-13."""
    for integer, tolerance in ((True, 0.0), (False, 1e-13)):
        parts = [memory_of((*pairs(9, seed=seed, integer=integer)[:2], None)) for seed in range(3)]
        left, right, tail = parts[0].fork(), parts[0].fork(), parts[1].fork()
        left.merge(parts[1])
        left.merge(parts[2])
        tail.merge(parts[2])
        right.merge(tail)
        assert_alike(left, right, tolerance)
        empty = memory_of()
        for first, second in ((left.fork(), empty), (empty.fork(), left)):
            first.merge(second)
            assert_identical(first, left)


def test_a_memory_can_be_merged_with_itself():
    data = pairs(12)
    twice = memory_of(data)
    twice.merge(twice)
    assert_identical(twice, memory_of(data, data))


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_writing_in_chunks_equals_writing_at_once(chunk):
    """Exactly for integers, whose sums have no rounding; to 1e-13 for other numbers, summed in another order."""
    for integer, tolerance in ((True, 0.0), (False, 1e-13)):
        keys, values, _ = pairs(64, integer=integer)
        chunks = [(keys[begin : begin + chunk], values[begin : begin + chunk], None) for begin in range(0, 64, chunk)]
        assert_alike(memory_of(*chunks), memory_of((keys, values, None)), tolerance)


def test_a_long_call_is_read_block_by_block_as_chunks_of_that_size_are():
    data = pairs(2 * BLOCK + 5)
    blocks = [tuple(tensor[begin : begin + BLOCK] for tensor in data) for begin in range(0, 2 * BLOCK + 5, BLOCK)]
    assert_identical(memory_of(data), memory_of(*blocks))


def test_the_state_does_not_grow_and_holds_no_graph():
    memory = memory_of()
    sizes = {memory.nbytes}
    assert memory.nbytes == 8 * (2 * RANK**2 + HEAD_DIM * RANK + 2 * RANK + 1)
    for step in range(20):
        keys, values, weights = pairs(50, seed=step)
        memory.write(keys.requires_grad_(), values.requires_grad_(), weights)
        sizes.add(memory.nbytes)
    assert len(sizes) == 1
    assert memory.count == 1000
    assert not any(tensor.requires_grad for tensor in memory.statistics.tensors().values())
    stored = sum(tensor.untyped_storage().nbytes() for tensor in memory.statistics.tensors().values())
    assert stored == memory.nbytes, "a key must not keep all the keys of its call alive"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_forgetting_restores_the_earlier_read(layout):
    data, queries = pairs(40, layout), pairs(9, layout, seed=1)[0]
    extra = pairs(500, layout, seed=2)
    memory = memory_of(data, layout=layout, ridge=1e-3)
    earlier = memory.read(queries)
    memory.write(*extra)
    assert float((memory.read(queries) - earlier).abs().max()) > 0.01
    memory.forget(*extra)
    assert float((memory.read(queries) - earlier).abs().max()) < 1e-6
    assert memory.count == 40


def test_forgetting_pairs_from_the_middle_equals_never_having_written_them():
    keys, values, weights = pairs(40)
    kept = torch.arange(40) % 3 != 0
    memory = memory_of((keys, values, weights))
    order = (~kept).nonzero().flatten().flip(0)  # in any order
    memory.forget(keys[order], values[order], weights[order])
    peer = memory_of((keys[kept], values[kept], weights[kept]))
    for name in ("gram", "value_moment", "count"):
        assert_same({name: getattr(memory.statistics, name)}, {name: getattr(peer.statistics, name)}, 1e-13)
    queries = pairs(9, seed=1)[0]
    assert_same({"read": memory.read(queries)}, {"read": peer.read(queries)}, 1e-11)


def test_a_memory_that_has_forgotten_does_not_answer_with_a_wrong_lag_moment():
    data, more = pairs(30), pairs(5, seed=1)
    memory = memory_of(data, more)
    lag_moment = memory.statistics.lag_moment
    memory.forget(*more)
    assert not memory.lag_is_exact
    assert torch.equal(memory.statistics.lag_moment, lag_moment)
    with pytest.raises(ValueError, match="pairs were forgotten: use power 0"):
        memory.fork(power=1)
    with pytest.raises(ValueError, match="no longer knows which key followed which"):
        memory.koopman_eigenvalues()
    ordered = memory_of(data, power=1)
    untouched = ordered.fork()
    with pytest.raises(ValueError, match="pairs were forgotten"):
        ordered.merge(memory)
    with pytest.raises(ValueError, match=r"power 1 cannot forget pairs.*subtract_suffix"):
        ordered.forget(*data)
    assert_identical(ordered, untouched)
    longer = memory_of(data, data)
    longer.subtract_prefix(memory, data[0][0])
    assert not longer.lag_is_exact
    memory.merge(memory_of(data))
    assert not memory.lag_is_exact


def test_a_memory_that_has_forgotten_everything_is_as_new():
    data = pairs(30)
    memory = memory_of(data)
    memory.forget(*(tensor.flip(0) for tensor in data))
    assert_identical(memory, memory_of())


def test_forgetting_what_was_never_written_is_refused_and_changes_nothing():
    memory = memory_of(pairs(10))
    before = memory.fork()
    others = pairs(10, seed=3)
    for wrong in (others, pairs(11), (others[0] * 0, others[1], others[2]), tuple(t[:4] for t in others)):
        with pytest.raises(ValueError, match="cannot all be among the 10 stored here"):
            memory.forget(*wrong)
    assert_identical(memory, before)


@pytest.mark.parametrize("forgotten", [1, 4])  # some, all
@pytest.mark.parametrize("layout", LAYOUTS)
def test_forgetting_values_that_were_never_written_is_refused_and_changes_nothing(layout, forgotten):
    """Where the keys that stay do not span those that go, the values that would be left belong to no key."""
    data = pairs(4, layout)
    memory = memory_of(data, layout=layout)
    before = memory.fork()
    keys, values, weights = cut(data, layout, 0, forgotten)
    wrong = values.clone()
    wrong[(-1,) * (wrong.dim() - 1)] += 0.01  # in one pair of one sequence and head
    with pytest.raises(ValueError, match=f"these {forgotten} pairs cannot all be among the 4 stored here"):
        memory.forget(keys, wrong, weights)
    assert_identical(memory, before)
    memory.forget(keys, values, weights)
    assert memory.count == 4 - forgotten


def test_subtracting_values_that_were_never_written_is_refused_and_changes_nothing():
    first, second = pairs(2), pairs(2, seed=1)
    memory = memory_of(first, second)
    before = memory.fork()
    boundary = memory_of(second).statistics.first_key
    with pytest.raises(ValueError, match="cannot all be among the 4 stored here"):
        memory.subtract_prefix(memory_of((first[0], first[1] + 1, first[2])), boundary)
    assert_identical(memory, before)


def test_values_are_not_taken_for_foreign_because_of_rounding():
    """Keys of an ever smaller spread, in units far apart; values that cancel, by chance or since they are residuals."""
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(300, 1, generator=generator, dtype=torch.float64)
    powers = points ** torch.arange(RANK)
    narrow = torch.exp(-((points - torch.linspace(0, 1, RANK, dtype=torch.float64)) ** 2) / 2)
    units = pairs(300)[0] * 10.0 ** torch.linspace(0, -9, RANK, dtype=torch.float64)
    flat = pairs(300)[0] * (torch.arange(RANK) < 2)
    for keys in (powers, narrow, units, flat, units @ torch.linalg.qr(pairs(RANK)[0])[0]):
        for values in (pairs(300, seed=1)[1], torch.cos(3 * keys[:, :1]).expand(-1, HEAD_DIM)):
            left = values - keys @ torch.linalg.pinv(keys) @ values
            for written in (values, left, values * 10.0 ** (6 * torch.rand(300, 1, generator=generator))):
                memory = memory_of((keys, written, None))
                order = torch.randperm(300, generator=generator)
                for part in order.split([100, 195, 4, 1]):
                    memory.forget(keys[part], written[part])
                assert_identical(memory, memory_of())


@pytest.mark.parametrize("settings", READS.values(), ids=READS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_prefix_and_a_suffix_can_be_subtracted(layout, settings):
    """The lag moment included: reads at every power are those of the rest."""
    data, queries = pairs(60, layout), pairs(9, layout, seed=1)[0]
    first, second = (memory_of(cut(data, layout, *ends), layout=layout, **settings) for ends in ((0, 25), (25, 60)))
    whole = memory_of(data, layout=layout, **settings)
    rest, head = whole.fork(), whole.fork()
    rest.subtract_prefix(first, second.statistics.first_key)
    head.subtract_suffix(second, first.statistics.previous_key)
    for remaining, expected in ((rest, second), (head, first)):
        assert_alike(remaining, expected, 1e-12)
        assert_same({"read": remaining.read(queries)}, {"read": expected.read(queries)}, 1e-10)
        assert remaining.lag_is_exact


def test_a_window_slides_over_a_stream():
    """Parts leave at the front as others come in; the boundary key is given as a plain row."""
    parts = [memory_of((*pairs(10, seed=seed)[:2], None), power=2) for seed in range(50)]
    window = parts[0].fork()
    for number in range(1, 50):
        window.merge(parts[number])
        if number >= 3:
            window.subtract_prefix(parts[number - 3], pairs(10, seed=number - 2)[0][0])
    expected = parts[47].fork()
    expected.merge(parts[48])
    expected.merge(parts[49])
    assert_alike(window, expected, 1e-11)


def test_subtracting_what_is_no_part_is_refused_and_changes_nothing():
    memory, short = memory_of(pairs(20)), memory_of(pairs(5))
    before = memory.fork()
    key = memory.statistics.first_key
    with pytest.raises(ValueError, match="must be shorter than the whole"):
        memory.subtract_prefix(memory, key)
    with pytest.raises(ValueError, match="cannot all be among the 20 stored here"):
        memory.subtract_suffix(memory_of(tuple(100 * tensor for tensor in pairs(5))), key)
    with pytest.raises(ValueError, match=r"first_key must have the shape \[5\] and has \[4\]"):
        memory.subtract_prefix(short, torch.ones(4))
    with pytest.raises(ValueError, match="previous_key must be finite"):
        memory.subtract_suffix(short, torch.full((5,), float("nan")))
    with pytest.raises(ValueError, match="rank is 5 here and 4 there"):
        memory.subtract_prefix(AssociativeMemory(4, HEAD_DIM), key)
    assert_identical(memory, before)


def test_a_fork_goes_its_own_way():
    data = pairs(20)
    memory = memory_of(data)
    before, branch = memory.fork(), memory.fork(ridge=3.0, power=2, gain=0.5, blend=0.25)
    branch.statistics.gram.zero_()
    branch.write(*pairs(5, seed=1))
    assert_identical(memory, before)
    assert branch.settings.power == 2
    rewritten = memory_of(data, ridge=3.0, power=2, gain=0.5, blend=0.25)
    assert_identical(memory.fork(ridge=3.0, power=2, gain=0.5, blend=0.25), rewritten)
    with pytest.raises(TypeError, match="fork changes ridge, power, gain or blend, not rank"):
        memory.fork(rank=3)


def test_gradients_flow_to_queries_and_answers_have_their_dtype():
    memory = memory_of(pairs(20), power=1)
    queries = pairs(4, seed=1)[0].requires_grad_()
    assert torch.autograd.gradcheck(memory.read, queries)
    answers = memory.read(queries.float())
    assert answers.dtype == torch.float32
    assert_same({"answers": answers}, {"answers": memory.read(queries)}, 1e-5)


def test_arrays_and_lists_are_read_as_tensors_are(tmp_path):
    keys, values, weights = pairs(30)
    expected = memory_of((keys, values, weights))
    np.save(tmp_path / "keys.npy", keys.numpy())
    mapped = np.load(tmp_path / "keys.npy", mmap_mode="r")  # read-only
    reversed_twice = np.ascontiguousarray(values.numpy()[::-1])[::-1]  # negative strides
    for data in (
        (keys.numpy(), values.numpy(), weights.numpy()),
        (keys.tolist(), values.tolist(), weights.tolist()),
        (mapped, reversed_twice, weights.numpy().astype(">f8")),
    ):
        memory = memory_of(data)
        assert_identical(memory, expected)
        assert torch.equal(memory.read(data[0]), expected.read(keys))


def test_inputs_are_not_changed_and_nothing_keeps_them_alive():
    data = pairs(20)
    copies = [tensor.clone() for tensor in data]
    memory = memory_of(data)
    before = memory.fork()
    for tensor, copy in zip(data, copies, strict=True):
        assert torch.equal(tensor, copy)
        tensor.fill_(float("nan"))
    assert_identical(memory, before)


KEYS, VALUES, WEIGHTS = pairs(6)
BAD_WRITES = {
    "a single key": ((KEYS[0], VALUES[:1]), ValueError, r"keys must have the shape \[T, 5\].*have \[5\]"),
    "another rank": ((KEYS[:, :4], VALUES), ValueError, r"keys must have the shape \[T, 5\].*have \[6, 4\]"),
    "another head_dim": ((KEYS, VALUES[:, :1]), ValueError, r"values must have the shape \[T, 3\]"),
    "a batch too many": ((KEYS[None], VALUES[None]), ValueError, r"keys must have the shape \[T, 5\]"),
    "fewer values": ((KEYS, VALUES[:5]), ValueError, "there are 6 keys and 5 values"),
    "weights as a column": ((KEYS, VALUES, WEIGHTS[:, None]), ValueError, r"weights must have the shape \[T\]"),
    "a negative weight": ((KEYS, VALUES, -WEIGHTS), ValueError, "weights must not be negative"),
    "a NaN": ((KEYS, VALUES.index_fill(0, torch.tensor(4), float("nan"))), ValueError, "values must be finite.*pair 4"),
    "an overflow": ((KEYS * 1e200, VALUES), ValueError, "leave the range of torch.float64: scale keys"),
    "complex keys": ((KEYS.to(torch.complex128), VALUES), TypeError, "keys must be real numbers"),
    "strings": ((np.array([["a"] * 5]), VALUES[:1]), TypeError, "keys must be real numbers"),
    "ragged lists": (([[1.0], [1.0, 2.0]], VALUES[:2]), TypeError, "keys must be nested lists of numbers"),
    "something else": (("keys", VALUES), TypeError, "keys must be a tensor, a NumPy array or nested lists"),
}


@pytest.mark.parametrize("case", BAD_WRITES)
def test_bad_pairs_are_refused_and_nothing_of_them_is_written(case):
    arguments, error, sentence = BAD_WRITES[case]
    memory = memory_of((KEYS, VALUES, WEIGHTS))
    before = memory.fork()
    for method in (memory.write, memory.forget):
        with pytest.raises(error, match=sentence):
            method(*arguments)
    assert_identical(memory, before)


def test_a_bad_number_far_into_a_long_call_loses_nothing():
    keys, values, _ = pairs(BLOCK + 10)
    keys[BLOCK + 7, 2] = float("inf")
    memory = memory_of((KEYS, VALUES, WEIGHTS))
    before = memory.fork()
    with pytest.raises(ValueError, match=f"keys must be finite and are not at pair {BLOCK + 7}"):
        memory.write(keys, values)
    assert_identical(memory, before)


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"rank": 0}, ValueError, "rank must be at least 1 and is 0"),
        ({"head_dim": 2.0}, TypeError, "head_dim must be an integer and is 2.0"),
        ({"num_heads": 0}, ValueError, "num_heads must be at least 1"),
        ({"batch_size": True}, TypeError, "batch_size must be an integer"),
        ({"ridge": 0}, ValueError, "ridge must be above 0 and is 0.0"),
        ({"ridge": float("nan")}, ValueError, "ridge must be finite"),
        ({"ridge": "1"}, TypeError, "ridge must be a number"),
        ({"power": -1}, ValueError, "power must be at least 0"),
        ({"gain": 0.0}, ValueError, "gain must be above 0"),
        ({"blend": 1.5}, ValueError, "blend must be None or from 0 to 1 and is 1.5"),
    ],
)
def test_bad_settings_are_refused(settings, error, sentence):
    with pytest.raises(error, match=sentence):
        AssociativeMemory(**({"rank": RANK, "head_dim": HEAD_DIM} | settings))


def test_writing_no_pair_changes_nothing_and_an_empty_memory_reads_zeros():
    memory = memory_of()
    memory.write(KEYS[:0], VALUES[:0])
    memory.forget(KEYS[:0], VALUES[:0])
    assert_identical(memory, memory_of())
    assert torch.equal(memory.read(KEYS), torch.zeros(6, HEAD_DIM).double())
    assert memory.read(KEYS[:0]).shape == (0, HEAD_DIM)


def test_sums_that_cannot_be_factored_raise():
    memory = memory_of(ridge=1e-9)
    memory.write(1e9 * KEYS[:1].expand(20, RANK), VALUES[:1].expand(20, HEAD_DIM))
    with pytest.raises(ArithmeticError, match="raise the ridge"):
        memory.read(KEYS)


def test_memories_of_other_sizes_are_not_merged():
    with pytest.raises(ValueError, match="num_heads is None here and 2 there"):
        memory_of().merge(memory_of(layout="heads"))


def test_the_representation_names_settings_and_count():
    assert repr(memory_of((KEYS, VALUES, None), ridge=0.5)) == (
        "AssociativeMemory(rank=5, head_dim=3, num_heads=None, batch_size=None, ridge=0.5, power=0, gain=1.0, "
        "blend=None, count=6)"
    )


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_is_no_place_for_a_memory(tmp_path, overwrite):
    with pytest.raises(IsADirectoryError, match=r"is a folder: name a file$"):
        AssociativeMemory(2, 2).save(tmp_path, overwrite=overwrite)
    assert list(tmp_path.iterdir()) == []


def test_merging_refuses_what_writing_refuses():
    one, other = AssociativeMemory(1, 1), AssociativeMemory(1, 1)
    for memory in (one, other):
        memory.write([[1.3e154]], [[1.0]])
    with pytest.raises(ValueError, match=r"leave the range of torch\.float64: scale keys"):
        one.merge(other)
    assert one.count == 1
    assert one.statistics.gram.isfinite().all()
