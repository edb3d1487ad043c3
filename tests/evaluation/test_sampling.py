import pytest
import torch

from echo_ska.evaluation.sampling import printable, read_on, sample, sample_text, write_on
from echo_ska.models import EchoForCausalLM
from echo_ska.models.presets import preset


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = EchoForCausalLM(preset("echo-1m", vocab_size=256, hidden_size=32, num_heads=2, rank=4, state_size=4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # untrained models hardly tell tokens apart
    return model


PROMPT = torch.tensor([72, 101, 108, 108, 111])


def test_greedy_equals_reading_everything_again(model):
    drawn = sample(model, PROMPT, 12, temperature=0)
    tokens = PROMPT
    with torch.no_grad():
        for _ in range(12):
            following = model.eval()(tokens[None], use_cache=False).logits[0, -1].argmax()
            tokens = torch.cat([tokens, following[None]])
    assert torch.equal(drawn, tokens[len(PROMPT) :])


def test_pieces_are_read_as_one(model):
    tokens = torch.arange(40)
    counts = []
    reading = read_on(model, [tokens[:13], tokens[:0], tokens[13:]], segment_length=5, progress=counts.append)
    whole = read_on(model, [tokens])
    assert torch.allclose(reading.logits, whole.logits, atol=1e-5)
    assert reading.tokens == reading.cache.get_seq_length() == 40
    assert counts == [13, 13, 40]


def test_a_cache_is_gone_on_from(model):
    tokens = torch.arange(40)
    begun = read_on(model, [tokens[:13]])
    reading = read_on(model, [tokens[13:20], tokens[20:]], past_key_values=begun.cache)
    assert torch.allclose(reading.logits, read_on(model, [tokens]).logits, atol=1e-5)
    assert reading.tokens == reading.cache.get_seq_length() == 40


def test_tokens_are_written_one_by_one(model):
    greedy = sample(model, PROMPT, 6, temperature=0).tolist()
    reading = read_on(model, [PROMPT])
    written = write_on(model, reading, 6, temperature=0)
    assert [next(written), next(written)] == greedy[:2]
    assert reading.tokens == len(PROMPT) + 1  # no token is drawn, or read, before it is asked for
    assert list(written) == greedy[2:]
    assert reading.tokens == reading.cache.get_seq_length() == len(PROMPT) + 5


def test_the_seed_decides(model):
    first = sample(model, PROMPT, 20, seed=1)
    assert torch.equal(first, sample(model, PROMPT, 20, seed=1))
    assert not torch.equal(first, sample(model, PROMPT, 20, seed=2))
    assert first.dtype == torch.int64
    assert len(first) == 20


def test_top_1_is_greedy_and_a_low_temperature_nearly(model):
    greedy = sample(model, PROMPT, 8, temperature=0)
    assert torch.equal(sample(model, PROMPT, 8, top_k=1), greedy)
    assert torch.equal(sample(model, PROMPT, 8, temperature=1e-300), greedy)
    assert len(sample(model, PROMPT, 8, top_k=10_000)) == 8


def test_top_p_draws_from_the_fewest_likeliest_tokens(model):
    reading = read_on(model, [PROMPT])
    probabilities, order = (reading.logits.double() / 0.7).softmax(dim=-1).sort(descending=True)
    allowed = order[: int((probabilities.cumsum(dim=-1) < 0.5).sum()) + 1].tolist()
    assert 1 < len(allowed) < 100

    def drawn(**settings):
        return {next(write_on(model, reading, 1, temperature=0.7, seed=seed, **settings)) for seed in range(300)}

    assert drawn(top_p=0.5) <= set(allowed)
    assert len(drawn(top_p=0.5)) > 1
    assert not drawn(top_p=1.0) <= set(allowed)
    assert drawn(top_p=probabilities[0].item() / 2) == {allowed[0]}
    for top_p in (0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="top_p must be above 0"):
            drawn(top_p=top_p)


def test_it_stops_before_the_stop_token(model):
    greedy = sample(model, PROMPT, 8, temperature=0)
    first = greedy.tolist().index(int(greedy[3]))
    assert torch.equal(sample(model, PROMPT, 8, temperature=0, stop_token=int(greedy[3])), greedy[:first])


def test_the_model_stays_in_its_training_state(model):
    model.train()
    sample(model, PROMPT, 1)
    assert model.training


def test_text_cannot_command_the_terminal(model):
    assert isinstance(sample_text(model, "héllo", 30), str)
    assert printable("a\x1b[31mb\n\tc\x00é") == "a�[31mb\n\tc�é"


@pytest.mark.parametrize(
    ("prompt", "settings", "message"),
    [
        (PROMPT[:0], {}, "at least one token"),
        (PROMPT[None], {}, r"got shape \[1, 5\]"),
        (PROMPT, {"temperature": -1}, "temperature must be"),
        (PROMPT, {"temperature": float("nan")}, "temperature must be"),
        (PROMPT, {"top_k": 0}, "top_k must be at least 1"),
        (PROMPT, {"new_tokens": -1}, "new_tokens must be at least 0"),
    ],
)
def test_what_is_refused(model, prompt, settings, message):
    with pytest.raises(ValueError, match=message):
        sample(model, prompt, **({"new_tokens": 3} | settings))


@pytest.mark.parametrize("seed", [-(2**63) - 1, 2**64, 99999999999999999999])
def test_a_seed_that_no_generator_takes_is_refused_before_anything_is_read(seed):
    with pytest.raises(ValueError, match=f"seed must be at least .* and below .*, got {seed}"):
        sample(None, PROMPT, 1, seed=seed)


@pytest.mark.parametrize("seed", [-(2**63), 2**64 - 1])
def test_the_outermost_seeds_are_taken(model, seed):
    assert len(sample(model, PROMPT, 1, seed=seed)) <= 1
