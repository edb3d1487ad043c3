"""Accuracy of a language model on questions about long texts, by the likelihoods of all answers, in constant memory."""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from echo_ska.evaluation.hidden_text import Prose, TextQuestion, TextTask, TokenCounter, hide
from echo_ska.evaluation.sampling import Reading, read_on
from echo_ska.models import EchoForCausalLM
from echo_ska.models.eval_mode import in_eval_mode
from echo_ska.models.tokenization import encode

COPIED_BYTES = 1 << 28
"""Of copies of the state that are held at once, one for each candidate that is scored at the same time."""


@dataclass(frozen=True)
class TextRecall:
    """How a model did on one task at one length.

    Attributes:
        task: the task's name.
        length: tokens asked for; 0 is the facts alone.
        samples: questions asked, all of them different.
        accuracy: mean share of a question's answers among the candidates found likeliest, as many as there are answers.
        standard_error: of that mean; None where a single question was asked.
        chance: see `TextTask.chance`.
        tokens: tokens read before the answer, the mean over questions.
        state_bytes: of the model's state after a text, the largest.
        seconds: wall time of it all.
    """

    task: str
    length: int
    samples: int
    accuracy: float
    standard_error: float | None
    chance: float
    tokens: float
    state_bytes: int
    seconds: float


def token_counter(tokenizer: PreTrainedTokenizerBase) -> TokenCounter:
    """Counts a text's tokens; remembers what it counted, since the same sentences come again and again."""
    return functools.cache(lambda text: len(encode(tokenizer, text)))


def make_question(
    task: TextTask, number: int, seed: int, prose: Prose, length: int, measure: TokenCounter
) -> TextQuestion:
    """Question `number`, counted from 0, in a text of `length` tokens: the same story at every length.

    Raises:
        ValueError: its story does not fit.
    """
    random = Random(f"hidden {task.name} {seed} {number} {length}")
    return hide(task.story(number, seed), prose, length, measure, random)


def questions_asked(task: TextTask, samples: int) -> int:
    """How many of `samples` questions `text_recall` asks: none twice, since asked again it would tell nothing new."""
    return samples if task.questions is None else min(samples, task.questions)


def require_fit(task: TextTask, length: int, samples: int, seed: int, measure: TokenCounter) -> None:
    """Raise ValueError unless all stories that `text_recall` would ask of these arguments fit into `length` tokens."""
    if length == 0:
        return
    needed = max(task.story(number, seed).tokens(measure) for number in range(questions_asked(task, samples)))
    if needed > length:
        raise ValueError(
            f"The stories of {task.name} take up to {needed} tokens, which do not fit into {length}: ask at lengths of "
            f"at least {needed}, or at 0 (no background)."
        )


@torch.no_grad()
def text_recall(
    model: EchoForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    task: TextTask,
    prose: Prose,
    length: int,
    samples: int,
    seed: int = 0,
    *,
    measure: TokenCounter | None = None,
    progress: Callable[[int], None] | None = None,
) -> TextRecall:
    """Ask different questions in texts of `length` tokens. The model is in eval mode meanwhile.

    Args:
        model: has a state to go on from.
        tokenizer: the model's.
        task: use `TextTask.limited_to` first, so that all its stories fit.
        prose: the background.
        length: tokens of a text, its question and its longest answer together, at most; 0 is without background.
        samples: questions, at least 1; a task that has fewer is asked all that it has (`questions_asked`).
        seed: decides the questions.
        measure: `token_counter(tokenizer)`, to be shared between calls.
        progress: called after each question with the tokens read for it.

    Raises:
        ValueError: a number is out of range, or a story does not fit; nothing was read then.
    """
    if samples < 1 or length < 0:
        raise ValueError(f"samples must be at least 1 and length at least 0, got {samples} and {length}.")
    measure = token_counter(tokenizer) if measure is None else measure
    began = time.perf_counter()
    samples = questions_asked(task, samples)
    require_fit(task, length, samples, seed, measure)
    scores: list[float] = []
    tokens = state_bytes = 0
    with in_eval_mode(model):
        for number in range(samples):
            question = make_question(task, number, seed, prose, length, measure)
            reading = read_on(model, [encode(tokenizer, question.prompt)])
            reading.cache.compact()
            state_bytes = max(state_bytes, reading.cache.nbytes)
            tokens += reading.tokens
            written = [encode(tokenizer, question.written(candidate)) for candidate in question.candidates]
            scores.append(share_found(question, log_likelihoods(model, reading, written)))
            if progress is not None:
                progress(reading.tokens)
    mean = sum(scores) / samples
    squares = sum((score - mean) ** 2 for score in scores)
    return TextRecall(
        task=task.name,
        length=length,
        samples=samples,
        accuracy=mean,
        standard_error=math.sqrt(squares / (samples - 1) / samples) if samples > 1 else None,
        chance=task.chance,
        tokens=tokens / samples,
        state_bytes=state_bytes,
        seconds=time.perf_counter() - began,
    )


def share_found(question: TextQuestion, likelihoods: Tensor) -> float:
    """The share of a question's answers among its likeliest candidates, as many as there are answers."""
    order = likelihoods.argsort(descending=True, stable=True)[: len(question.answers)].tolist()
    return sum(question.candidates[at] in question.answers for at in order) / len(question.answers)


@torch.no_grad()
def log_likelihoods(model: EchoForCausalLM, reading: Reading, continuations: Sequence[Tensor]) -> Tensor:
    """Log-likelihoods, in nats, of several continuations of what was read, each from a copy of the state.

    Args:
        model: that read it.
        reading: is left as it is.
        continuations: rows of int64 tokens, each of at least one.

    Returns:
        float64 [N] on the CPU.
    """
    at_once = max(1, COPIED_BYTES // max(1, reading.cache.nbytes))
    first = reading.logits.double().log_softmax(dim=-1)  # [V]
    found: list[Tensor] = []
    for begin in range(0, len(continuations), at_once):
        group = continuations[begin : begin + at_once]
        tokens = pad_sequence(list(group), batch_first=True).to(first.device)  # [G, L]; what is padded comes last
        lengths = torch.tensor([len(row) for row in group], device=first.device)
        each = first[tokens[:, :1]]  # [G, 1]
        if tokens.shape[1] > 1:
            cache = copy.deepcopy(reading.cache)
            cache.batch_repeat_interleave(len(group))
            logits = model(input_ids=tokens[:, :-1], past_key_values=cache, use_cache=True).logits
            later = logits.double().log_softmax(dim=-1).gather(-1, tokens[:, 1:, None])[..., 0]
            each = torch.cat([each, later], dim=1)  # [G, L]
        real = torch.arange(tokens.shape[1], device=first.device) < lengths[:, None]
        found.append(each.masked_fill(~real, 0.0).sum(dim=1).cpu())
    return torch.cat(found)
