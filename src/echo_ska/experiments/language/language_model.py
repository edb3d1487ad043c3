"""language-model (claim 9): nine language models of one size on the same novels, scored on authors they never read.

Byte by byte, 1.1M parameters in six layers of width 128, 1,800 steps of 8 windows of 512 bytes of `train/` (7.4 MB): a
Transformer (RoPE, SwiGLU), Mamba-2, Mamba-2 with two layers of attention, the same without rotary positions, and with
one layer, gated DeltaNet, Mamba-3, Mamba-2 with two layers of SKA and SwiGLU, and Echo, the same with Koopman MLPs.
Parameters are equal within half a percent by the width of the feed-forward layers; every mixer but Mamba-2, which is as
published, has SKA's aids (short convolutions, delayed keys, a tied start). One layer of attention in six is the share
of Nemotron-H (arXiv 2504.03624), which counts mixers and feed-forward layers alike: 4 of its 52 are attention, here 1
of 12, and 92 % are not. Each model at the best of the same three rates, by its bits per byte on `valid/` after 400
steps, and of higher ones as long as the highest is its best; three seeds.

Then bits per byte on the unseen authors of `test/` and on every further folder, at contexts of 256 to 16,384 bytes, 32
times the training's, the same bytes at every length (`evaluation.context_length`). Models with a state of fixed size
also read the unseen novels whole, from the first byte to the last; Echo once more in segments of other lengths, and
byte by byte. On one core about 27 minutes a run and 5 a rate. `language_model_50m` is the same at 50M parameters.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from echo_ska.experiments.language.language_model_results import (
    ECHO,
    HYBRID,
    NO_POSITIONS,
    SWIGLU,
    context_rows,
    label,
    rows,
)
from echo_ska.experiments.trials.changes import no_positions
from echo_ska.experiments.trials.recorded import records_named
from echo_ska.experiments.trials.studies import print_rows, seed_count, study_files
from echo_ska.experiments.trials.text_trial import Scoring, TextTrial
from echo_ska.experiments.trials.texts import TEST, VALID, TextFolder
from echo_ska.experiments.trials.trial import Arm, Measure, as_large_as
from echo_ska.experiments.trials.tuning import Comparison
from echo_ska.models import EchoForCausalLM
from echo_ska.training import RunRecord, bits_per_byte
from echo_ska.training.text import VOCAB_SIZE

SEGMENTS = (512, 4096, 16_384)
STEPPED_BYTES = 65_536
"""Of a novel that are also read one by one."""


def readings(network: EchoForCausalLM, trial: TextTrial) -> dict[str, Any]:
    """`read_whole`; Echo's seed 0 also in segments of other lengths and byte by byte.

    Returns:
        Besides, `segments`: of the longest text, bits per byte by segment length for all of it (`whole`) and for its
        first bytes (`first`, of which there are `bytes`; there by 1 byte a call, too).
    """
    found = read_whole(network, trial)
    if trial.arm.name != ECHO or trial.seed != 0:
        return found
    # Byte by byte so small a model is quicker on the CPU, and segments are compared with that.
    network.to("cpu")
    longest = max(trial.texts.load(TEST), key=lambda text: len(text.tokens))
    segments: dict[str, Any] = {"text": longest.path.name, "bytes": min(STEPPED_BYTES, len(longest.tokens))}
    for name, lengths, most in (("whole", SEGMENTS, None), ("first", (1, *SEGMENTS), STEPPED_BYTES)):
        segments[name], started = {}, time.perf_counter()
        for length in lengths:
            score = bits_per_byte(network, longest.tokens, segment_length=length, max_bytes=most)
            segments[name][str(length)] = score.bits_per_byte
        segments[f"{name}_seconds"] = time.perf_counter() - started
    return found | {"segments": segments}


def read_whole(network: EchoForCausalLM, trial: TextTrial) -> dict[str, Any]:
    """The unseen texts from first byte to last, by networks whose state does not grow.

    Returns:
        `whole`: by text `bits_per_byte`, `bytes`, and `state_bytes` after the first segment and after the last; empty
        for the other networks.
    """
    if network.state_bytes(1) != network.state_bytes(1 << 20):
        return {"whole": {}}
    whole = {}
    for text in trial.texts.load(TEST):
        segment = SEGMENTS[1]
        begun = bits_per_byte(network, text.tokens, segment_length=segment, max_bytes=segment)
        score = bits_per_byte(network, text.tokens, segment_length=segment)
        whole[text.path.name] = {
            "bits_per_byte": score.bits_per_byte,
            "bytes": score.bytes_scored,
            "state_bytes": [begun.cache.nbytes, score.cache.nbytes],
        }
    return {"whole": whole}


@dataclass(frozen=True)
class TextPlan:
    """A size of the comparison.

    Attributes:
        name: of the experiment.
        shape: fields of `EchoConfig` that all arms share.
        echo_width: of Echo's feed-forward layers; the others' follow from it.
        recalling: layers that have SKA, or attention in its place.
        few: those that have attention in the hybrid with 8 %.
        steps, batch_size, length: of every training, in windows of `length` bytes.
        rates, tuning_steps: what every arm tries, and how long.
        further: see `Comparison`.
        contexts, blocks: what is scored of every part, see `Scoring`.
        tuned_blocks: of `VALID`, at the training's length.
        measure: further figures of a trained network.
        precision: of the trainings.
        at_once: see `Comparison`.
        seeds: of every arm at its best rate.
    """

    name: str
    shape: Mapping[str, Any]
    echo_width: int
    recalling: tuple[int, ...]
    few: tuple[int, ...]
    steps: int
    batch_size: int
    length: int
    rates: tuple[float, ...]
    tuning_steps: int
    further: tuple[float, ...] = ()
    contexts: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192, 16_384)
    blocks: int = 8
    tuned_blocks: int = 512
    measure: Measure | None = readings
    precision: str = "fp32"
    at_once: int | None = None
    seeds: int = 3

    def quick(self) -> TextPlan:
        """120 steps, contexts up to four times the training's, one seed, nothing further measured."""
        contexts = tuple(context for context in self.contexts if context <= 4 * self.length)
        return dataclasses.replace(self, steps=120, contexts=contexts, measure=None, seeds=1)

    @property
    def tuned_on(self) -> tuple[Scoring, ...]:
        """What decides between rates."""
        return (Scoring(VALID, (self.length,), self.tuned_blocks),)

    def scorings(self, texts: TextFolder) -> tuple[Scoring, ...]:
        """What trained models are scored on."""
        return tuple(Scoring(part, self.contexts, self.blocks) for part in texts.scored)

    def _layers(self, mixer: str, *places: int) -> list[str]:
        """Mamba-2, with `mixer` in some places."""
        count = self.shape["num_hidden_layers"]
        return [mixer if layer in places else "mamba2" for layer in range(count)]

    def arms(self) -> list[Arm]:
        """Echo, and as large as it the others; those that take longest first."""
        count, shape = self.shape["num_hidden_layers"], dict(self.shape)
        with_ska = self._layers("ska", *self.recalling)
        echo = Arm(
            ECHO,
            shape | {"layer_types": with_ska, "feed_forward": "koopman", "intermediate_size": self.echo_width},
        )
        others: dict[str, dict[str, Any]] = {
            "mamba-3": {"layer_types": ["mamba3"] * count},
            "transformer": {"layer_types": ["full_attention"] * count},
            "gated deltanet": {
                "layer_types": ["gated_delta_net"] * count,
                "rank": shape["hidden_size"] // shape["num_heads"],
            },
            "mamba-2": {"layer_types": ["mamba2"] * count},
            HYBRID: {"layer_types": self._layers("full_attention", *self.recalling)},
            "mamba-2 + attention, 8 %": {"layer_types": self._layers("full_attention", *self.few)},
            SWIGLU: {"layer_types": with_ska},
        }
        found = {name: as_large_as(Arm(name, shape | fields), echo, VOCAB_SIZE) for name, fields in others.items()}
        found[NO_POSITIONS] = dataclasses.replace(found[HYBRID], name=NO_POSITIONS, changes=(no_positions,))
        return [found["mamba-3"], echo, *(arm for name, arm in found.items() if name != "mamba-3")]

    def comparison(self, texts: TextFolder) -> Comparison:
        """What is run."""
        trials = [
            TextTrial(
                self.name,
                arm,
                texts,
                self.steps,
                self.batch_size,
                self.length,
                self.rates[0],
                self.scorings(texts),
                measure=self.measure,
                precision=self.precision,
            )
            for arm in self.arms()
        ]
        return Comparison(
            trials, self.rates, self.tuned_on, self.tuning_steps, at_once=self.at_once, further=self.further
        )

    def quick_comparison(self, texts: TextFolder) -> Comparison:
        """What is run of the quick form: nothing is tried, see `Comparison.at_recorded_rates`."""
        path = study_files(self.name)[0]
        full = self.recorded_comparison(path) or self.comparison(texts)
        return full.at_recorded_rates(self.quick().comparison(texts).trials, path)

    def recorded_comparison(self, path: Path) -> Comparison | None:
        """The comparison on the texts that the newest record was trained on; None where there is none."""
        found = records_named(self.name, path)
        return self.comparison(TextFolder.of_records(found)) if found else None

    def run(
        self, console: Console, *, seeds: int | None, quick: bool, text: Path | None, device: str
    ) -> list[RunRecord]:
        """See `run`."""
        from echo_ska.experiments.language.language_model_figure import draw  # matplotlib, which jobs do without

        plan = self.quick() if quick else self
        texts = TextFolder.read(text, self.name)
        for scoring in (*plan.tuned_on, *plan.scorings(texts)):
            scoring.refuse_short(texts)
        path, picture = study_files(self.name, quick)
        comparison = self.quick_comparison(texts) if quick else self.comparison(texts)
        results = comparison.on(device).run(console, seed_count(seeds, plan.seeds), path)
        print_rows(console, "Bits per byte, mean over seeds", rows(results))
        print_rows(console, f"Bits per byte of {label(TEST)} by context", context_rows(results))
        draw(results, picture)
        return [record for records in results.values() for record in records]


PLAN = TextPlan(
    name="language-model",
    shape={
        "hidden_size": 128,
        "num_hidden_layers": 6,
        "num_heads": 4,
        "rank": 24,
        "state_size": 32,
        "feed_forward": "swiglu",
    },
    echo_width=320,
    recalling=(2, 4),
    few=(3,),
    steps=1800,
    batch_size=8,
    length=512,
    rates=(2e-3, 5e-3, 1.2e-2),
    tuning_steps=400,
    further=(2.9e-2, 7e-2),
)


def run(
    console: Console, *, seeds: int | None = None, quick: bool = False, text: Path | None = None, device: str = "cpu"
) -> list[RunRecord]:
    """Run what is not recorded, print the tables and draw the picture.

    `quick` takes one seed, 120 steps, contexts up to 2,048 bytes and the rates of the full records, in files of its
    own. `text` is the folder of the texts, see `TextFolder.read`; `device` where models are trained and scored, "cpu"
    or "cuda".

    Raises:
        ValueError: the texts are not there or too short, or the records cannot be read.
        JobError: a run failed; those that ended before it are recorded.
    """
    return PLAN.run(console, seeds=seeds, quick=quick, text=text, device=device)
