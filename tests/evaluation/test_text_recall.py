"""Candidates are scored as the model scores whole texts, and a model that knows the answers is right."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from echo_ska.evaluation import text_recall as module
from echo_ska.evaluation.babilong import load_babi
from echo_ska.evaluation.hidden_text import Prose
from echo_ska.evaluation.needle import NEEDLES
from echo_ska.evaluation.sampling import read_on
from echo_ska.evaluation.text_recall import (
    log_likelihoods,
    make_question,
    require_fit,
    share_found,
    text_recall,
    token_counter,
)
from echo_ska.models import EchoConfig, EchoForCausalLM, byte_tokenizer
from echo_ska.models.tokenization import encode, train_bpe
from echo_ska.training import book_path


@pytest.fixture(scope="module", name="model")
def _model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_heads": 2, "rank": 8, "state_size": 8}
    model = EchoForCausalLM(EchoConfig(**sizes, ska_layers=[1], attention_layers=[2])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module", name="prose")
def _prose():
    return Prose([book_path("unseen")])


@pytest.mark.parametrize("copied_bytes", [1, 60_000, 1 << 28])  # one candidate at a time, a few, all
def test_likelihoods_are_those_of_whole_texts(model, monkeypatch, copied_bytes):
    monkeypatch.setattr(module, "COPIED_BYTES", copied_bytes)
    context = torch.randint(256, (300,), generator=torch.Generator().manual_seed(1))
    answers = [torch.tensor(list(answer.encode())) for answer in (" a", " kitchen.", "x", " no.", " garden.")]
    reading = read_on(model, [context], segment_length=128)
    found = log_likelihoods(model, reading, answers)
    for answer, likelihood in zip(answers, found.tolist(), strict=True):
        ids = torch.cat([context, answer])[None]
        with torch.no_grad():
            scores = F.log_softmax(model(ids).logits[0, :-1].double(), dim=-1)
        whole = scores.gather(-1, ids[0, 1:, None])[-len(answer) :].sum().item()
        assert likelihood == pytest.approx(whole, abs=2e-4)
    assert torch.equal(found, log_likelihoods(model, reading, answers))  # the state was not touched
    assert found.dtype == torch.float64


def test_the_accuracy_is_that_of_the_likeliest_candidates(model, prose):
    [task] = load_babi(variants=["qa6"])
    tokenizer = byte_tokenizer()
    read = []
    result = text_recall(model, tokenizer, task, prose, 600, 8, seed=2, progress=read.append)
    measure = token_counter(tokenizer)
    right = 0
    for number in range(8):
        question = make_question(task, number, 2, prose, 600, measure)
        likelihoods = []
        for candidate in question.candidates:
            ids = encode(tokenizer, question.prompt + question.written(candidate))[None]
            with torch.no_grad():
                each = F.log_softmax(model(ids).logits[0, :-1].double(), dim=-1).gather(-1, ids[0, 1:, None])
            likelihoods.append(each[-len(question.written(candidate)) :].sum().item())
        right += question.candidates[likelihoods.index(max(likelihoods))] in question.answers
    assert result.accuracy == right / 8
    assert result.standard_error == pytest.approx((result.accuracy * (1 - result.accuracy) / 7) ** 0.5)
    assert text_recall(model, tokenizer, task, prose, 600, 1).standard_error is None  # one score has no spread
    assert result.chance == task.chance
    assert result.samples == len(read) == 8
    assert result.tokens == sum(read) / 8
    assert 400 < result.tokens < 600
    again = text_recall(model, tokenizer, task, prose, 600, 8, seed=2)
    assert (again.accuracy, again.tokens, again.state_bytes) == (result.accuracy, result.tokens, result.state_bytes)


def test_no_story_is_asked_twice(model, prose):
    """Answers to one question asked again are not independent: they would make the standard error too small."""
    tokenizer = byte_tokenizer()
    [task] = load_babi(variants=["qa3"])
    sizes = sorted(task.story(number, 0).tokens(len) for number in range(task.questions))
    few = task.limited_to(sizes[2], len)
    read = []
    found = text_recall(model, tokenizer, few, prose, 0, 20, progress=read.append)
    assert found.samples == len(read) == few.questions == 3
    assert found == replace(text_recall(model, tokenizer, few, prose, 0, 3), seconds=found.seconds)
    assert text_recall(model, tokenizer, NEEDLES["single"], prose, 0, 4).samples == 4


@pytest.mark.parametrize("name", NEEDLES)
def test_who_finds_all_answers_likeliest_is_right(prose, name):
    for number in range(5):
        question = make_question(NEEDLES[name], number, 0, prose, 0, len)
        known = torch.tensor([float(candidate in question.answers) for candidate in question.candidates])
        assert share_found(question, known) == 1.0
        assert share_found(question, -known) == 0.0


def test_a_part_of_several_answers_counts_as_a_part(prose):
    question = make_question(NEEDLES["multi-value"], 0, 0, prose, 0, len)
    likelihoods = torch.zeros(16)
    right = [question.candidates.index(answer) for answer in question.answers]
    wrong = [at for at in range(16) if at not in right]
    likelihoods[[*right[:3], wrong[0]]] = 1.0
    likelihoods[right[3]] = -1.0
    assert share_found(question, likelihoods) == 3 / 4


def test_the_same_stories_are_asked_at_every_length_and_lengths_are_kept_in_any_tokens(prose, tmp_path):
    (tmp_path / "a.txt").write_text(" ".join(prose.sentences[:500]))
    tokenizer = train_bpe([tmp_path / "a.txt"], 600)
    measure = token_counter(tokenizer)
    [task] = load_babi(variants=["qa2"])
    longest = max(measure(f" {sentence}") for sentence in prose.sentences)
    task = task.limited_to(500, measure)
    for number in range(5):
        asked = [make_question(task, number, 0, prose, length, measure) for length in (0, 500, 4000)]
        assert len({(question.question, question.answers) for question in asked}) == 1
        for question, length in zip(asked[1:], (500, 4000), strict=True):
            answer = max(len(encode(tokenizer, question.written(candidate))) for candidate in question.candidates)
            assert length - longest - 5 <= len(encode(tokenizer, question.prompt)) + answer <= length + 5


def test_numbers_out_of_range_are_refused(model, prose):
    with pytest.raises(ValueError, match="samples must be at least 1 and length at least 0, got 0 and 9"):
        text_recall(model, byte_tokenizer(), NEEDLES["single"], prose, 9, 0)
    with pytest.raises(ValueError, match="stories of single take up to 188 tokens, which do not fit into 9: ask at"):
        text_recall(model, byte_tokenizer(), NEEDLES["single"], prose, 9, 1)


@pytest.mark.parametrize("name", NEEDLES)
def test_stories_that_do_not_fit_are_refused_before_any_is_read(model, prose, name):
    task, tokenizer = NEEDLES[name], byte_tokenizer()
    sizes = [task.story(number, 5).tokens(len) for number in range(4)]
    read = []
    with pytest.raises(ValueError, match=f"up to {max(sizes)} tokens, which do not fit into {max(sizes) - 1}: ask at"):
        text_recall(model, tokenizer, task, prose, max(sizes) - 1, 4, seed=5, progress=read.append)
    assert read == []
    assert text_recall(model, tokenizer, task, prose, max(sizes), 4, seed=5).samples == 4
    least = sizes.index(min(sizes))  # what fits is asked, whatever others need
    require_fit(task, max(sizes[: least + 1]), least + 1, 5, len)
