import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from sentences import sentence

from echo_ska.corpus import PackedTokens, TokenStream
from echo_ska.models import EchoConfig, EchoForCausalLM

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_heads": 2, "rank": 8, "state_size": 8}


def pieces(batch):
    """The ids and labels between the cuts."""
    bounds = batch["cu_seqlens"].tolist()
    for start, stop in itertools.pairwise(bounds):
        yield batch["input_ids"][0, start:stop], batch["labels"][0, start:stop]


def test_rows_are_windows_cut_where_documents_begin(bytes_corpus):
    data, stream = PackedTokens(bytes_corpus, 4, 64, seed=1), TokenStream(bytes_corpus)
    whole = bytes(stream.read(0, stream.tokens).tolist())
    starts, seen = set(stream.starts(0, stream.tokens).tolist()), 0
    for step in range(5):
        batch = data.batch(step)
        assert batch["input_ids"].shape == batch["labels"].shape == (1, 256)
        assert {value.dtype for value in batch.values()} == {torch.int64}
        cuts = batch["cu_seqlens"].tolist()
        assert cuts == sorted(set(cuts))
        assert cuts[0] == 0
        assert cuts[-1] == 256
        for row in range(4):
            window = bytes(batch["input_ids"][0, 64 * row : 64 * row + 64].tolist())
            places = [at for at in range(len(whole)) if whole.startswith(window, at)]
            inside = {cut - 64 * row for cut in cuts if 64 * row <= cut < 64 * row + 64}
            assert inside in [{0} | {at - place for at in starts if place <= at < place + 64} for place in places]
            seen += len(inside)
        for ids, labels in pieces(batch):
            assert labels[0] == -100
            assert torch.equal(labels[1:], ids[1:])
            assert 0 not in ids[:-1]  # the end token ends a piece
    assert seen > 25


def test_a_batch_is_a_function_of_seed_and_step(bytes_corpus):
    def tokens(seed, step):
        return PackedTokens(bytes_corpus, 4, 32, seed).batch(step)["input_ids"].tolist()

    assert tokens(0, 3) == tokens(0, 3)
    data = PackedTokens(bytes_corpus, 4, 32, 0)
    for step in (7, 0, 3):  # in any order
        assert data.batch(step)["input_ids"].tolist() == tokens(0, step)
    assert tokens(0, 3) != tokens(1, 3)
    assert tokens(0, 3) != tokens(0, 4)


def test_an_epoch_visits_every_window_once(bytes_corpus):
    data = PackedTokens(bytes_corpus, 1, 32, seed=5)
    epochs = []
    for epoch in range(3):
        starts = [data._start(epoch * data.windows + number) for number in range(data.windows)]
        assert {start % 32 for start in starts} == {min(starts) % 32}
        ordered = sorted(starts)
        assert ordered == list(range(ordered[0], ordered[0] + 32 * data.windows, 32))
        assert ordered[0] < 32
        assert data.stream.tokens - ordered[-1] - 32 < 64
        assert starts != ordered
        epochs.append(starts)
    assert epochs[0] != epochs[1] != epochs[2]
    assert len({start[0] % 32 for start in map(sorted, epochs)}) > 1


@pytest.mark.parametrize("spare", [0, 1, 63, 64, 65])
def test_a_split_of_one_or_two_windows(bytes_corpus, spare):
    tokens = TokenStream(bytes_corpus).tokens
    length = tokens - spare if spare < 2 else (tokens - spare + 64) // 2
    data = PackedTokens(bytes_corpus, 2, length, seed=0)
    for step in range(20):
        assert data.batch(step)["input_ids"].shape == (1, 2 * length)


def test_the_parts_together_are_the_batch(bytes_corpus):
    data = PackedTokens(bytes_corpus, 6, 40, seed=2)
    whole = data.batch(9)["input_ids"].view(6, 40)
    for parts in (1, 2, 3, 6):
        for part in range(parts):
            batch = data.batch(9, part, parts)
            assert torch.equal(batch["input_ids"].view(-1, 40), whole[part::parts])
            assert int(batch["cu_seqlens"][-1]) == 240 // parts
    scored = sum((data.batch(9, part, 3)["labels"] >= 0).sum() for part in range(3))
    assert scored == (data.batch(9)["labels"] >= 0).sum()
    with pytest.raises(ValueError, match=r"A batch of 6 cannot be divided into 4 equal parts.* multiple of 4\."):
        data.batch(0, 0, 4)
    for part, parts in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match=f"part must be at least 0 and below parts, got {part} of {parts}"):
            data.batch(0, part, parts)


def test_what_determines_the_batches_is_described(bytes_corpus, bpe_corpus):
    described = PackedTokens(bytes_corpus, 4, 32, 7).describe()
    assert described == PackedTokens(bytes_corpus, 4, 32, 7).describe()
    assert {"batch_size": 4, "length": 32, "seed": 7, "split": "training"}.items() <= described.items()
    assert described["sha256"] == TokenStream(bytes_corpus).describe()["sha256"]
    assert PackedTokens(bpe_corpus, 4, 32, 7).describe()["sha256"] != described["sha256"]


def test_what_does_not_fit_is_refused(bytes_corpus, bpe_corpus):
    with pytest.raises(ValueError, match=r"Need batch_size >= 1 and length >= 3, got 0 and 8"):
        PackedTokens(bytes_corpus, 0, 8, 0)
    with pytest.raises(ValueError, match="got 1 and 2"):
        PackedTokens(bytes_corpus, 1, 2, 0)
    with pytest.raises(
        ValueError, match=r"has [\d,]+ tokens, less than one window of 100000: give more documents or a"
    ):
        PackedTokens(bytes_corpus, 1, 100_000, 0)
    with pytest.raises(
        ValueError, match=r"knows 256 token ids and the tokenizer of .* has 300: give the model a vocab"
    ):
        PackedTokens(bpe_corpus, 1, 32, 0, vocab_size=256)
    PackedTokens(bpe_corpus, 1, 32, 0, vocab_size=300)


def test_three_tokens_in_a_row_are_enough_to_score_one(bytes_corpus):
    data = PackedTokens(bytes_corpus, 1, 3, 0)
    assert all((data.batch(step)["labels"][0] >= 0).any() for step in range(data.windows))


@pytest.fixture(scope="module")
def model():
    """All three kinds of layers, in float64."""
    torch.manual_seed(0)
    model = EchoForCausalLM(EchoConfig(**SIZES, vocab_size=256, ska_layers=[1], attention_layers=[2])).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert set(model.config.layer_types) == {"mamba2", "ska", "full_attention"}
    return model.train()


def gradients(model):
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return found


def nats(logits, labels):
    """Of a row, summed, by the logits' own precision (the model's own loss is taken in float32)."""
    return F.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="sum")


def test_documents_never_bleed(bytes_corpus, model):
    """The loss of a packed batch and its gradients are those of its pieces, each read alone."""
    batch = PackedTokens(bytes_corpus, 3, 80, seed=4).batch(0)
    assert len(batch["cu_seqlens"]) > 5
    scored = int((batch["labels"] >= 0).sum())
    packed = model(**batch)
    loss = nats(packed.logits, batch["labels"]) / scored
    loss.backward()
    of_packed = gradients(model)

    alone, logits, own = 0.0, [], 0.0
    for ids, labels in pieces(batch):
        output = model(input_ids=ids[None], labels=labels[None])
        logits.append(output.logits)
        one = nats(output.logits, labels[None]) / scored
        one.backward()
        alone += one.item()
        if count := int((labels >= 0).sum()):
            own += output.loss.item() * count / scored
    assert loss.item() == pytest.approx(alone, rel=1e-12)
    assert packed.loss.item() == pytest.approx(loss.item(), rel=1e-6) == own
    torch.testing.assert_close(packed.logits, torch.cat(logits, 1), rtol=1e-10, atol=1e-10)
    of_alone = gradients(model)
    assert of_packed.keys() == of_alone.keys()
    for name, gradient in of_packed.items():
        scale = gradient.abs().max().item()
        assert scale > 0, name
        assert (gradient - of_alone[name]).abs().max().item() < 1e-10 * max(scale, 1e-3), name


def test_another_document_before_it_changes_nothing(bytes_corpus, model):
    batch = PackedTokens(bytes_corpus, 2, 80, seed=4).batch(0)
    bounds = batch["cu_seqlens"].tolist()
    other = batch["input_ids"].clone()
    other[0, bounds[0] : bounds[1]] = 7
    assert not torch.equal(other, batch["input_ids"])
    with torch.no_grad():
        both = (batch["input_ids"], other)
        before, after = (model(input_ids=ids, cu_seqlens=batch["cu_seqlens"]).logits for ids in both)
        unbounded = [model(input_ids=ids).logits[0, bounds[1] :] for ids in both]
    torch.testing.assert_close(before[:, bounds[1] :], after[:, bounds[1] :], rtol=0, atol=1e-12)
    assert (unbounded[0] - unbounded[1]).abs().max() > 1e-3  # without the bounds it does


def test_byte_pairs_pack_like_bytes(bpe_corpus):
    tokenizer = TokenStream(bpe_corpus).index.open_tokenizer(bpe_corpus)
    data = PackedTokens(bpe_corpus, 4, 50, 0)
    end, written = tokenizer.end_token, {sentence(number) for number in range(60)}
    for step in range(math.ceil(data.windows / 4)):
        for ids, _ in pieces(data.batch(step)):
            text = tokenizer.tokenizer.decode(ids[ids != end].tolist()).strip("\N{REPLACEMENT CHARACTER}")
            assert any(text in document for document in written)
