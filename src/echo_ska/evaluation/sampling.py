"""Writing on from a prompt, token by token, with the model's own cache."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from echo_ska.models.segments import read_in_segments
from echo_ska.training.text import END_OF_FILE


@torch.no_grad()
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
        model: `model(input_ids=, past_key_values=, use_cache=True, logits_to_keep=1)` returns `.logits` [1, 1, V] of
            the last token and `.past_key_values`.
        prompt: [T] integers, T >= 1.
        new_tokens: how many tokens to draw at most, at least 0.
        temperature: the logits are divided by it; 0 always takes the likeliest token.
        top_k: draw from the so many likeliest tokens alone; None from all.
        stop_token: stop before this token.
        seed: of the draws.

    Returns:
        The tokens drawn, without the prompt, int64 [N] on the CPU, N <= new_tokens.

    Raises:
        ValueError: for an empty prompt or a setting out of range.
    """
    if prompt.dim() != 1 or len(prompt) == 0:
        raise ValueError(f"the prompt must be a row of at least one token, got shape {list(prompt.shape)}")
    check_sampling(new_tokens, temperature, top_k)
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    following, cache = prompt.to(device, torch.int64), None
    drawn: list[int] = []
    was_training = model.training
    model.eval()
    try:
        for _ in range(new_tokens):
            for _, output in read_in_segments(
                model, following[None], past_key_values=cache, more=lambda begin, end: {"logits_to_keep": 1}
            ):
                cache = output.past_key_values
            token = _draw(output.logits[0, -1].cpu().double(), temperature, top_k, generator)
            if token == stop_token:
                break
            drawn.append(token)
            following = torch.tensor([token], device=device)
    finally:
        model.train(was_training)
    return torch.tensor(drawn, dtype=torch.int64)


def check_sampling(new_tokens: int, temperature: float, top_k: int | None) -> None:
    """Raise a ValueError for a setting of `sample` that is out of range."""
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature must be a number of at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    if new_tokens < 0:
        raise ValueError(f"new_tokens must be at least 0, got {new_tokens}")


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


def _draw(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logits.argmax())
    if top_k is not None and top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], float("-inf"))
    # The largest is subtracted first: a small temperature then cannot overflow.
    probabilities = ((logits - logits.max()) / temperature).softmax(dim=-1)
    return int(torch.multinomial(probabilities, 1, generator=generator))
