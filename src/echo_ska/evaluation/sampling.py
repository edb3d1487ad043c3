"""Reading a context and writing on from it, token by token, with the model's own cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from echo_ska.models.eval_mode import in_eval_mode
from echo_ska.models.segments import SEGMENT_LENGTH, read_in_segments
from echo_ska.training.text import END_OF_FILE


@dataclasses.dataclass
class Reading:
    """What a model knows after the tokens it has read.

    Attributes:
        logits: of the token to come, [V].
        cache: the states of its layers.
        tokens: how many tokens they have read.
    """

    logits: Tensor
    cache: Any
    tokens: int


@torch.no_grad()
def read_on(
    model: nn.Module,
    pieces: Iterable[Tensor],
    *,
    past_key_values: Any = None,
    segment_length: int = SEGMENT_LENGTH,
    progress: Callable[[int], None] | None = None,
) -> Reading:
    """Read tokens that come piece by piece: memory for one piece and one segment, however many there are.

    The model is in eval mode meanwhile.

    Args:
        model: `model(input_ids=, past_key_values=, use_cache=True, logits_to_keep=1)` returns `.logits` [1, 1, V] of
            the last token and `.past_key_values`.
        pieces: rows of integers [T_i], one after the other; some may be empty.
        past_key_values: the cache of what was read before, to go on from; it is updated. None begins anew.
        segment_length: tokens in a forward call, at least 1.
        progress: called with the number of tokens read so far, after each piece.

    Raises:
        ValueError: a piece is no row, or there is no token at all.
    """
    device = next(model.parameters()).device
    last, tokens, before = None, 0, 0 if past_key_values is None else past_key_values.get_seq_length()
    with in_eval_mode(model):
        for piece in pieces:
            if piece.dim() != 1:
                raise ValueError(f"a prompt is a row of tokens, got shape {list(piece.shape)}")
            for _, output in read_in_segments(
                model,
                piece.to(device, torch.int64)[None],
                segment_length,
                past_key_values=past_key_values if last is None else last.past_key_values,
                more=lambda begin, end: {"logits_to_keep": 1},
            ):
                last = output
            tokens += len(piece)
            if progress is not None:
                progress(tokens)
    if last is None:
        raise ValueError("a prompt has at least one token, got none")
    return Reading(last.logits[0, -1], last.past_key_values, before + tokens)


@torch.no_grad()
def end_tokens(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens by which a text ends: those of the model's `generation_config`, and the tokenizer's end token."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    named = ends if isinstance(ends, list) else [ends]
    return frozenset(token for token in (*named, tokenizer.eos_token_id) if token is not None)


def write_on(
    model: nn.Module,
    reading: Reading,
    new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop_token: int | Collection[int] | None = None,
    seed: int = 0,
) -> Iterator[int]:
    """Draw tokens one at a time, each with the state of all before it, and yield each as soon as it is drawn.

    The model is in eval mode meanwhile. The same seed draws the same tokens from the same model.

    Args:
        model: see `read_on`.
        reading: where to go on from. It is updated: afterwards it holds all drawn tokens but the last.
        new_tokens: how many tokens to draw at most, at least 0.
        temperature: the logits are divided by it; 0 always takes the likeliest token.
        top_k: draw from the so many likeliest tokens alone; None from all.
        top_p: draw from the fewest likeliest tokens (of those) that have at least this probability together, after the
            temperature; None from all (Holtzman et al., arXiv 1904.09751).
        stop_token: stop before this token, or before any of these.
        seed: of the draws.

    Raises:
        ValueError: for a setting out of range, when the first token is asked for.
    """
    check_sampling(new_tokens, temperature, top_k, top_p, seed)
    stops = (stop_token,) if stop_token is None or isinstance(stop_token, int) else stop_token
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    token: int | None = None
    for _ in range(new_tokens):
        if token is not None:
            with in_eval_mode(model):
                output = model(
                    input_ids=torch.tensor([[token]], device=device),
                    past_key_values=reading.cache,
                    use_cache=True,
                    logits_to_keep=1,
                )
            reading.logits, reading.cache, reading.tokens = (
                output.logits[0, -1],
                output.past_key_values,
                reading.tokens + 1,
            )
        token = _draw(reading.logits.cpu().double(), temperature, top_k, top_p, generator)
        if token in stops:
            return
        yield token


def sample(
    model: nn.Module,
    prompt: Tensor,
    new_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    stop_token: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Read `prompt` once, in segments, then draw tokens one at a time, each read with the state of all before it.

    The model is in eval mode meanwhile. The same seed draws the same tokens from the same model.

    Args:
        model: see `read_on`.
        prompt: [T] integers, T >= 1.
        new_tokens: how many tokens to draw at most, at least 0.
        temperature, top_k, stop_token: see `write_on`.
        seed: of the draws.

    Returns:
        The tokens drawn, without the prompt, int64 [N] on the CPU, N <= new_tokens.

    Raises:
        ValueError: for an empty prompt or a setting out of range.
    """
    check_sampling(new_tokens, temperature, top_k, seed=seed)
    drawn = write_on(
        model,
        read_on(model, [prompt]),
        new_tokens,
        temperature=temperature,
        top_k=top_k,
        stop_token=stop_token,
        seed=seed,
    )
    return torch.tensor(list(drawn), dtype=torch.int64)


def check_sampling(
    new_tokens: int, temperature: float, top_k: int | None, top_p: float | None = None, seed: int = 0
) -> None:
    """Raise a ValueError for a setting of `write_on` that is out of range."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be a number of at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")
    if new_tokens < 0:
        raise ValueError(f"new_tokens must be at least 0, got {new_tokens}")
    if not -(2**63) <= seed < 2**64:  # what torch's generators take
        raise ValueError(f"seed must be at least -2**63 and below 2**64, got {seed}")


def sample_text(
    model: nn.Module,
    prompt: str,
    new_bytes: int,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> str:
    """What a byte-level model writes after `prompt`, without it, up to the byte that closes files; see `sample`.

    Bytes that are no UTF-8, and control characters other than line ends and tabs, which a terminal might obey,
    become the replacement character.
    """
    tokens = torch.tensor(list(prompt.encode()), dtype=torch.int64)
    drawn = sample(model, tokens, new_bytes, temperature=temperature, top_k=top_k, stop_token=END_OF_FILE, seed=seed)
    return printable(bytes(drawn.tolist()).decode("utf-8", errors="replace"))


def printable(text: str) -> str:
    """`text` with every control character but line end and tab replaced."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def _draw(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None and top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], float("-inf"))
    # The largest is subtracted first: a small temperature then cannot overflow.
    probabilities = ((logits - logits.max()) / temperature).softmax(dim=-1)
    if top_p is not None and top_p < 1:
        descending, order = probabilities.sort(descending=True, stable=True)
        likelier = descending.cumsum(dim=-1) - descending  # probability of all that are likelier; 0 for the first
        probabilities = probabilities.index_fill(0, order[likelier >= top_p], 0.0)
    return int(torch.multinomial(probabilities, 1, generator=generator))
