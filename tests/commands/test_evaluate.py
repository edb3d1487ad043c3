"""`echo-ska eval`, through lm-evaluation-harness where it is installed."""

from __future__ import annotations

import importlib.util
import json
import math

import pytest
import torch
import torch.nn.functional as F

from echo_ska.models import EchoForCausalLM

needs_harness = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-evaluation-harness is not installed (the extra `eval`)"
)
QUESTIONS = [
    {"query": "Question: What is hot?", "choices": ["the sun", "ice", "snow", "a cold stone"], "gold": 0},
    {"query": "Question: What is wet?", "choices": ["sand", "rain", "dust", "fire"], "gold": 1},
    {"query": "Question: What flies?", "choices": ["a cow", "a fish", "a bird", "a table"], "gold": 2},
]
LAMBADA = ["The cat sat on the mat", "She said that it was late", "They went back to the house"]


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()

    def lines(name, rows):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    lines("arc_easy_test.jsonl", QUESTIONS)
    lines("arc_challenge_test.jsonl", QUESTIONS[:2])
    lines("lambada_test.jsonl", [{"text": text} for text in LAMBADA])
    lines("piqa_valid.jsonl", [{"goal": "To stay dry", "sol1": "use a roof", "sol2": "stand in the rain"}])
    (folder / "piqa_valid-labels.lst").write_text("0\n")
    hellaswag = "Roof: A man sits on a roof. he\n1\nflies.\njumps.\nswims.\nsleeps.\n"
    (folder / "hellaswag_val_full.txt").write_text(hellaswag)
    babi = "1 John went to the hall.\n2 Where is John? \thall\t1\n"
    (folder / "qa1_single-supporting-fact_test.txt").write_text(babi)
    return folder


def log_likelihood(model, context, answer):
    """In nats, of the bytes of `answer` after `context`."""
    ids = torch.tensor([list((context + answer).encode())])
    with torch.no_grad():
        scores = F.log_softmax(model(ids).logits[0, :-1].double(), dim=-1)
    each = scores.gather(-1, ids[0, 1:, None])[:, 0]
    return each[-len(answer.encode()) :].sum().item()


@needs_harness
def test_scores_are_those_of_the_model(run, model_folder, data, tmp_path):
    figures = tmp_path / "f.json"
    result = run(
        *("eval", model_folder, "--tasks", "arc_easy_local,lambada_local,babi_qa1_local,hellaswag_local,piqa_local"),
        *("--data", data, "--json", figures),
    )
    assert result.exit_code == 0, result.output
    scores = json.loads(figures.read_text())["tasks"]
    assert set(scores) == {"arc_easy_local", "lambada_local", "babi_qa1_local", "hellaswag_local", "piqa_local"}
    assert all(name in result.stdout for name in scores)
    assert {name: score["questions"] for name, score in scores.items()} == {
        "arc_easy_local": 3,
        "lambada_local": 3,
        "babi_qa1_local": 1,
        "hellaswag_local": 1,
        "piqa_local": 1,
    }
    model = EchoForCausalLM.from_pretrained(model_folder).eval()
    right = 0
    for question in QUESTIONS:
        asked = f"{question['query']}\nAnswer:"
        likely = [log_likelihood(model, asked, f" {choice}") for choice in question["choices"]]
        right += likely.index(max(likely)) == question["gold"]
    assert scores["arc_easy_local"]["metrics"]["acc"]["value"] == pytest.approx(right / len(QUESTIONS))
    words = [text.rsplit(" ", 1) for text in LAMBADA]
    mean = sum(log_likelihood(model, context, f" {word}") for context, word in words) / len(words)
    perplexity = scores["lambada_local"]["metrics"]["perplexity"]["value"]
    assert perplexity == pytest.approx(torch.tensor(-mean).exp().item(), rel=1e-3)


@needs_harness
def test_perplexity_of_articles_is_that_of_the_model(run, model_folder, data, tmp_path):
    pages = [
        " = One Title = \n \n It was late , she said . \n \n",
        " = Another = \n \n He ran 3 @-@ 4 miles ; then he slept . \n",
    ]
    (data / "test.txt").write_text(" \n" + "".join(pages))
    figures = tmp_path / "f.json"
    result = run("eval", model_folder, "--tasks", "wikitext_local", "--data", data, "--json", figures)
    assert result.exit_code == 0, result.output
    score = json.loads(figures.read_text())["tasks"]["wikitext_local"]
    assert score["questions"] == 2
    model = EchoForCausalLM.from_pretrained(model_folder).eval()
    texts = [" = One Title =\n\nIt was late, she said.\n\n", " = Another =\n\nHe ran 3-4 miles; then he slept.\n"]
    nats = -sum(log_likelihood(model, "\0", text) for text in texts)  # the end token is byte 0, read first
    assert score["metrics"]["word_perplexity"]["value"] == pytest.approx(math.exp(nats / (13 + 16)), rel=1e-3)
    size = sum(map(len, pages))
    assert score["metrics"]["bits_per_byte"]["value"] == pytest.approx(nats / size / math.log(2), rel=1e-3)


@needs_harness
def test_a_limit_and_an_unknown_task(run, refused, model_folder, data, tmp_path):
    figures = tmp_path / "f.json"
    asked = ("--tasks", "arc_challenge_local", "--data", data, "--limit", 1)
    assert run("eval", model_folder, *asked, "--json", figures).exit_code == 0
    assert json.loads(figures.read_text())["tasks"]["arc_challenge_local"]["questions"] == 1
    result = run("eval", model_folder, "--tasks", "no_such_task")
    assert result.exit_code == 1
    assert "has a task 'no_such_task'" in result.stderr


@needs_harness
def test_what_is_refused(refused, model_folder, data, tmp_path):
    refused("give their folder by --data", "eval", model_folder, "--tasks", "lambada_local")
    refused("--data is for", "eval", model_folder, "--tasks", "hellaswag", "--data", data)
    refused("names no task", "eval", model_folder, "--tasks", ",")
    refused("There is no folder", "eval", tmp_path / "absent", "--tasks", "hellaswag")
    (data / "lambada_test.jsonl").unlink()
    refused("reads lambada_test.jsonl", "eval", model_folder, "--tasks", "lambada_local", "--data", data)


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-evaluation-harness is installed")
def test_without_the_harness(refused, model_folder):
    refused("pip install 'echo-ska[eval]'", "eval", model_folder, "--tasks", "hellaswag")
