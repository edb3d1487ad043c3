"""What `echo-ska train --data` learns: a corpus of `echo-ska data prepare`, scored on the documents it holds out."""

from __future__ import annotations

from typing import Any

import torch
from rich.console import Console
from rich.text import Text
from torch import nn
from transformers import PreTrainedTokenizerFast

from echo_ska.commands.data import verifying
from echo_ska.commands.goals import PROMPT_BYTES, TEXT_LENGTH, TrainRequest, bytes_to_score, refuse_task_settings
from echo_ska.commands.rare_lines import RareLines, say
from echo_ska.corpus import CorpusTokenizer, PackedTokens, TokenStream, verify_shards
from echo_ska.corpus.index import HELD_OUT
from echo_ska.corpus.scoring import require_scorable, score_documents
from echo_ska.corpus.tokenizer import BYTES
from echo_ska.evaluation.memory_plot import format_bytes
from echo_ska.evaluation.sampling import check_sampling, printable, sample
from echo_ska.models import EchoForCausalLM
from echo_ska.training import DataSource

PROMPT_TOKENS = PROMPT_BYTES
SCORE_BYTES = 524_288
"""Of all held-out documents together."""


class LearnCorpus:
    """Packed documents, each read from an empty state; a goal as `Goal` says. Without held-out ones, nothing is scored.

    Raises:
        ValueError: settings do not fit, or the corpus is missing, not complete, or has a file of another size than it
            was written in.
    """

    name = "train-data"

    def __init__(self, request: TrainRequest) -> None:
        refuse_task_settings(request, "a corpus")
        if request.held_out:
            raise ValueError("--held-out is for --text: what a corpus holds out was chosen when it was prepared.")
        check_sampling(request.sample_bytes, request.temperature, request.top_k)
        self.score_bytes = bytes_to_score(request, SCORE_BYTES)
        assert request.data is not None
        self.request = request
        self.console = Console(quiet=True)  # until it is introduced
        self.length = TEXT_LENGTH if request.length is None else request.length
        packed = PackedTokens(request.data, request.batch_size, self.length, request.seed)
        self.data: DataSource = packed
        self.training = packed.stream
        self.scored = bool(packed.stream.index.splits[HELD_OUT])
        self.held_out = TokenStream(request.data, HELD_OUT) if self.scored else None
        self.encoding: CorpusTokenizer = packed.stream.index.open_tokenizer(request.data)
        self.vocab_size = self.encoding.vocab_size
        self.tokenizer: PreTrainedTokenizerFast | None = self.encoding.tokenizer

    def introduce(self, console: Console) -> None:
        """See `Goal`."""
        self.console = console
        kind = "bytes" if self.encoding.sha256 == BYTES else f"tokens of {self.vocab_size:,} kinds"
        say(
            console,
            f"Learning {self.training.tokens:,} {kind} in {self.training.documents:,} documents; "
            + (
                "none is held out, so the model is not scored."
                if self.held_out is None
                else f"{self.held_out.documents:,} held out."
            ),
        )

    def check(self, console: Console) -> None:
        """See `Goal`: all shards are held to their checksums, unless that was declined; some document can be scored."""
        if self.request.verify:
            verify_shards(self.training.directory, verifying(self.training.index, console))
        if self.held_out is not None:
            try:
                require_scorable(self.held_out, self.encoding, max_bytes=self.score_bytes)
            except ValueError as error:
                raise ValueError(
                    f"{error} Give a larger --score-bytes, or prepare a corpus that holds out more, or nothing "
                    "(--held-out 0)."
                ) from None

    def evaluate(self, model: nn.Module, step: int) -> dict[str, Any]:
        """Nats a token and bits a byte of held-out documents, and the state's bytes after the one that left most."""
        assert self.held_out is not None
        lines = RareLines(self.console)
        return score_documents(
            model,
            self.held_out,
            self.encoding,
            max_bytes=self.score_bytes,
            progress=lambda tokens: lines.say(f"Scoring held-out documents: {tokens:,} tokens read."),
        )._asdict()

    def report(
        self, model: EchoForCausalLM, untrained: EchoForCausalLM, figures: dict[str, Any], console: Console
    ) -> None:
        """See `Goal`."""
        if self.held_out is None:
            return
        request = self.request
        before = self.evaluate(untrained, 0)
        figures |= {f"{name}_before": before[name] for name in ("nats_per_token", "bits_per_byte")}
        figures["samples"] = []
        say(
            console,
            f"Held-out documents: {before['bits_per_byte']:.3f} bits per byte before, {figures['bits_per_byte']:.3f} "
            f"after ({figures['nats_per_token']:.3f} nats per token); {format_bytes(figures['state_bytes'])} of state "
            "while reading them.",
        )
        for number in range(request.samples):
            ids = torch.from_numpy(self.held_out.document(number % self.held_out.documents)[0][:PROMPT_TOKENS])
            drawn = sample(
                model,
                ids,
                request.sample_bytes,
                temperature=request.temperature,
                top_k=request.top_k,
                stop_token=self.encoding.end_token,
                seed=request.seed + number,
            )
            prompt, written = (printable(str(self.encoding.tokenizer.decode(part.tolist()))) for part in (ids, drawn))
            figures["samples"].append({"prompt": prompt, "text": written})
            console.print(Text(f"\nSample {number + 1}, from a held-out document up to the bar:", style="bold"))
            console.print(Text(prompt + "|", style="dim") + Text(written), soft_wrap=True)
