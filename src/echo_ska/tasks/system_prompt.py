"""A system prompt and a conversation: facts open the sequence and are asked for at several places after it.

One sequence of `SystemPrompt(facts=3, questions=2, gaps="easy", length=20)`, keys from 0 ... 63, values from
64 ... 95, fillers (.) from 96 ... 119; sys = the marker SYSTEM, 120, usr = the marker USER, 121:

    position    0    1    2    3    4    5    6    7    8    9   10   11   12   13   14   15   16   17   18   19
    role      sys  key  val  key  val  key  val  usr    .  ask  val    .  ask  val    .    .    .    .    .    .
    input     120   44   64   47   67   53   91  121  119   44   64  113   53   91  117   96   97  108  107   96
    label    -100 -100 -100 -100 -100 -100 -100 -100 -100 -100   64 -100 -100   91 -100 -100 -100 -100 -100 -100

A fact is a key and its value. No fact is asked for twice, since its answer then stands in the sequence, as in
ordinary language modelling. At least one filler stands before each question. Of the F fillers beyond those:

- easy: every gap, from the facts to the first question too, has 0 ... F / (4 questions) more, so that all are
  asked within about the first quarter of the conversation; the other fillers end it.
- hard: the first question comes after F / 2 and up to F / (4 questions) more; the later gaps have between one
  and two times F / (4 questions).

Both grow with the length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from echo_ska.tasks.alphabet import Alphabet, Marker
from echo_ska.tasks.base import IGNORED, RecallBatch, draw_distinct, require_integer, require_request
from echo_ska.tasks.layout import AlphabetTask, require_at_most

GAPS = ("easy", "hard")


@dataclass(frozen=True, kw_only=True)
class SystemPrompt(AlphabetTask):
    """Facts of a system prompt, asked for during the conversation.

    Attributes:
        facts: key-value pairs, keys distinct within a sequence, values drawn with replacement.
        questions: facts asked for, each once, in random order.
        gaps: "easy" or "hard", see above.
        length, vocab_size, num_keys, num_values: see `AlphabetTask`.

    Raises:
        ValueError: for settings that cannot be met.

    Chance is 1 / num_values. Knowing which values are stored, but not under which key, gives over 1 / facts.
    """

    length: int = 128
    facts: int = 8
    questions: int = 4
    gaps: str = "easy"

    def _check(self, alphabet: Alphabet) -> None:
        require_integer("facts", self.facts, 1)
        require_integer("questions", self.questions, 1)
        require_at_most("facts", self.facts, self.num_keys, "keys, and those of a sequence are distinct")
        require_at_most("questions", self.questions, self.facts, "facts, and each is asked for once")
        if self.gaps not in GAPS:
            raise ValueError(f"gaps must be easy or hard, got {self.gaps!r}.")

    @property
    def _contents(self) -> str:
        return f"{self.facts} facts, {self.questions} questions, a filler before each, and two markers"

    @property
    def least_length(self) -> int:
        """Facts, questions, a filler before each question, two markers."""
        return 2 + 2 * self.facts + 3 * self.questions

    def sample(self, batch_size: int, generator: torch.Generator) -> RecallBatch:
        """Draw input_ids and labels, int64 [batch_size, length]; see `RecallTask.sample`."""
        require_request(batch_size, generator)
        alphabet = self.alphabet
        stored = 1 + 2 * self.facts
        keys = draw_distinct(batch_size, self.facts, self.num_keys, generator)  # [B, facts]
        values = alphabet.draw_values((batch_size, self.facts), generator)
        asked = draw_distinct(batch_size, self.questions, self.facts, generator)  # [B, questions]
        # Each question ends a stretch of its gap, one filler, its key and its value.
        cues = stored + 1 + (self._draw_gaps(batch_size, generator) + 3).cumsum(dim=1) - 2  # [B, questions]

        input_ids = alphabet.draw_fillers((batch_size, self.length), generator)
        input_ids[:, 0] = alphabet.marker(Marker.SYSTEM)
        input_ids[:, 1:stored:2] = keys
        input_ids[:, 2 : stored + 1 : 2] = values
        input_ids[:, stored] = alphabet.marker(Marker.USER)
        answers = values.gather(1, asked)
        input_ids.scatter_(1, cues, keys.gather(1, asked)).scatter_(1, cues + 1, answers)
        labels = torch.full_like(input_ids, IGNORED).scatter_(1, cues + 1, answers)
        return RecallBatch(input_ids, labels)

    def _draw_gaps(self, batch_size: int, generator: torch.Generator) -> torch.Tensor:
        """Fillers before each question, beyond the one that is always there: int64 [B, questions]."""
        spare = self.length - self.least_length
        unit = spare // (4 * self.questions)
        gaps = torch.randint(unit + 1, (batch_size, self.questions), generator=generator)
        if self.gaps == "hard":
            gaps[:, 0] += spare // 2
            gaps[:, 1:] += unit
        return gaps
