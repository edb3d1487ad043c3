import math

import pytest
import torch
import torch.nn.functional as F
from tiny_model import build

from echo_ska.training import bits_per_byte
from echo_ska.training.bits_per_byte import bits, over_texts, read_tokens


@pytest.mark.parametrize("segment_length", [1, 7, 63, 100, 1000])
def test_segments_do_not_matter(segment_length):
    model = build(vocab_size=256).double()
    tokens = torch.randint(256, (100,), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    seen = []
    score = bits_per_byte(
        model, tokens, segment_length=segment_length, progress=lambda read, total: seen.append((read, total))
    )
    model.eval()
    output = model(input_ids=tokens.long()[None])
    expected = F.cross_entropy(output.logits[0, :-1].float(), tokens[1:].long()).item() / math.log(2)
    assert score.bits_per_byte == pytest.approx(expected, rel=1e-6)
    assert score.bytes_scored == 99
    torch.testing.assert_close(score.cache, output.past_key_values)
    assert seen[-1] == (100, 100)
    assert len(seen) == math.ceil(100 / segment_length)


def test_model_returns_to_its_own_state_and_length_can_be_limited():
    model = build(vocab_size=256).train()
    tokens = torch.arange(100).to(torch.uint8)
    limited = bits_per_byte(model, tokens, max_bytes=10)
    assert model.training
    assert limited[:2] == bits_per_byte(model, tokens[:10])[:2]


def test_too_little_is_refused():
    with pytest.raises(ValueError, match="at least 2 bytes"):
        bits_per_byte(build(vocab_size=256), torch.zeros(1, dtype=torch.uint8))


def test_tokens_of_any_vocabulary_are_read_and_one_alone_scores_nothing():
    model = build(vocab_size=300).double().eval()
    tokens = torch.randint(300, (40,), generator=torch.Generator().manual_seed(2))
    read = read_tokens(model, tokens, segment_length=16)
    logits = model(input_ids=tokens[None]).logits[0, :-1]
    assert read.nats == pytest.approx(F.cross_entropy(logits.float(), tokens[1:], reduction="sum").item(), rel=1e-6)
    assert read.tokens_scored == 39
    alone = read_tokens(model, tokens[:1])
    assert (alone.nats, alone.tokens_scored) == (0.0, 0)
    torch.testing.assert_close(alone.cache, model(input_ids=tokens[None, :1]).past_key_values)


def test_a_text_counts_by_its_bytes():
    model = build(vocab_size=256)
    texts = [torch.arange(size).to(torch.uint8) for size in (5, 60)]
    found, scored = over_texts(
        (score.bits_per_byte, score.bytes_scored) for score in (bits_per_byte(model, t) for t in texts)
    )
    assert scored == 4 + 59
    assert found == pytest.approx(bits(sum(read_tokens(model, text).nats for text in texts)) / scored, rel=1e-9)
    with pytest.raises(ValueError, match="nothing to score"):
        over_texts([])
