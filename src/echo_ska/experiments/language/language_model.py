"""language-model (claim 9): eight language models of one size on the same novels, scored on authors they never read.

Byte by byte, 1.1M parameters in six layers of width 128, 1,800 steps of 8 windows of 512 bytes of `train/` (7.4 MB): a
Transformer (RoPE, SwiGLU), Mamba-2, Mamba-2 with two layers of attention and with one, gated DeltaNet, Mamba-3, Mamba-2
with two layers of SKA and SwiGLU, and Echo, the same with Koopman MLPs. Parameters are equal within half a percent by
the width of the feed-forward layers; every mixer but Mamba-2, which
is as published, has SKA's aids (short convolutions, delayed keys, a tied start). One
layer of attention in six is Nemotron-H's share (arXiv 2504.03624): it counts mixers and feed-forward layers alike, 4 of
52 are attention, and here 1 of 12: 92 % are not. Each model at the best of the same three rates, by its bits per byte
on `valid/` after 400 steps; three seeds.

Then bits per byte on the unseen authors of `test/` and on every further folder, at contexts of 256 to 16,384 bytes, 32
times the training's, the same bytes at every length (`evaluation.context_length`). Models with a state of fixed size
also read the unseen novels whole, from the first byte to the last; Echo once more in segments of other lengths, and
byte by byte. On one core about 27 minutes a run and 5 a rate.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from echo_ska.experiments.language.language_model_results import ECHO, LENGTH, SWIGLU, context_rows, label, rows
from echo_ska.experiments.trials.comparison import print_rows
from echo_ska.experiments.trials.recorded import records_named
from echo_ska.experiments.trials.text_trial import Scoring, TextTrial
from echo_ska.experiments.trials.texts import TEST, VALID, TextFolder
from echo_ska.experiments.trials.trial import Arm, as_large_as
from echo_ska.experiments.trials.tuning import Comparison
from echo_ska.models import EchoForCausalLM
from echo_ska.training import RunRecord, bits_per_byte
from echo_ska.training.text import VOCAB_SIZE

NAME = "language-model"
LAYERS = 6
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": LAYERS,
    "num_heads": 4,
    "rank": 24,
    "state_size": 32,
    "feed_forward": "swiglu",
}
ECHO_WIDTH = 320
"""Of Echo's feed-forward layers; the others' follow from it."""
STEPS, TUNING_STEPS, BATCH_SIZE = 1800, 400, 8
RATES = (2e-3, 5e-3, 1.2e-2)
SEEDS = 3
CONTEXTS = (256, 512, 1024, 2048, 4096, 8192, 16_384)
BLOCKS = 8
QUICK_STEPS, QUICK_CONTEXTS = 120, (256, 512, 1024, 2048)
TUNED_ON = (Scoring(VALID, (LENGTH,), 512),)
SEGMENTS = (512, 4096, 16_384)
STEPPED_BYTES = 65_536
"""Of a novel that are also read one by one."""


def _layers(mixer: str, *places: int) -> list[str]:
    """Mamba-2, with `mixer` in some places."""
    return [mixer if layer in places else "mamba2" for layer in range(LAYERS)]


def arms() -> list[Arm]:
    """Echo, and as large as it the others; those that take longest first."""
    echo = Arm(
        ECHO,
        SHAPE | {"layer_types": _layers("ska", 2, 4), "feed_forward": "koopman", "intermediate_size": ECHO_WIDTH},
    )
    others: dict[str, dict[str, Any]] = {
        "mamba-3": {"layer_types": ["mamba3"] * LAYERS},
        "transformer": {"layer_types": ["full_attention"] * LAYERS},
        "gated deltanet": {"layer_types": ["gated_delta_net"] * LAYERS, "rank": 32},
        "mamba-2": {"layer_types": ["mamba2"] * LAYERS},
        "mamba-2 + attention": {"layer_types": _layers("full_attention", 2, 4)},
        "mamba-2 + attention, 8 %": {"layer_types": _layers("full_attention", 3)},
        SWIGLU: {"layer_types": _layers("ska", 2, 4)},
    }
    found = {name: as_large_as(Arm(name, SHAPE | fields), echo, VOCAB_SIZE) for name, fields in others.items()}
    return [found["mamba-3"], echo, *(arm for name, arm in found.items() if name != "mamba-3")]


def trials(texts: TextFolder, quick: bool = False) -> list[TextTrial]:
    """A trial an arm; `quick` takes fewer steps and shorter contexts."""
    steps, scored = QUICK_STEPS if quick else STEPS, scorings(texts, quick)
    return [
        TextTrial(NAME, arm, texts, steps, BATCH_SIZE, LENGTH, RATES[1], scored, measure=None if quick else readings)
        for arm in arms()
    ]


def scorings(texts: TextFolder, quick: bool = False) -> tuple[Scoring, ...]:
    """What trained models are scored on."""
    return tuple(Scoring(part, QUICK_CONTEXTS if quick else CONTEXTS, BLOCKS) for part in texts.scored)


def comparison(texts: TextFolder, quick: bool = False) -> Comparison:
    """What is run; `quick` tries the middle rate alone."""
    return Comparison(
        trials(texts, quick),
        RATES[1:2] if quick else RATES,
        TUNED_ON,
        QUICK_STEPS // 4 if quick else TUNING_STEPS,
    )


def run(
    console: Console, *, seeds: int | None = None, quick: bool = False, text: Path | None = None
) -> list[RunRecord]:
    """Run what is not recorded, print the tables and draw the picture.

    `quick` takes one seed, one rate, 120 steps and contexts up to 2,048 bytes, in files of its own. `text` is the
    folder of the texts, see `TextFolder.read`.

    Raises:
        ValueError: the texts are not there or too short, or the records cannot be read.
        JobError: a run failed; those that ended before it are recorded.
    """
    from echo_ska.experiments.language.language_model_figure import draw  # matplotlib, which jobs do without

    texts = TextFolder.read(text, NAME)
    asked = comparison(texts, quick)
    for scoring in (*TUNED_ON, *scorings(texts, quick)):
        scoring.refuse_short(texts)
    stem = Path("results") / (f"{NAME}-quick" if quick else NAME)
    count = seeds or (1 if quick else SEEDS)
    results = asked.run(console, count, stem.with_suffix(".jsonl"))
    print_rows(console, "Bits per byte, mean over seeds", rows(results))
    print_rows(console, f"Bits per byte of {label(TEST)} by context", context_rows(results))
    draw(results, stem.with_suffix(".png"))
    return [record for records in results.values() for record in records]


def recorded_comparison(path: Path) -> Comparison | None:
    """The comparison on the texts that the newest record was trained on; None where there is none."""
    found = records_named(NAME, path)
    return comparison(TextFolder.of_records(found)) if found else None


def readings(network: EchoForCausalLM, trial: TextTrial) -> dict[str, Any]:
    """The unseen texts read whole, one a `whole`, by networks whose state does not grow; Echo's seed 0 in segments too.

    Returns:
        `whole`: by text `bits_per_byte`, `bytes`, and `state_bytes` after the first segment and after the last; empty
        for the other networks. `segments`: of the longest text, bits per byte by segment length for all of it
        (`whole`) and for its first bytes (`first`, of which there are `bytes`; there by 1 byte a call, too).
    """
    if network.state_bytes(1) != network.state_bytes(1 << 20):
        return {"whole": {}}
    texts = trial.texts.load(TEST)
    whole = {}
    for text in texts:
        segment = SEGMENTS[1]
        begun = bits_per_byte(network, text.tokens, segment_length=segment, max_bytes=segment)
        score = bits_per_byte(network, text.tokens, segment_length=segment)
        whole[text.path.name] = {
            "bits_per_byte": score.bits_per_byte,
            "bytes": score.bytes_scored,
            "state_bytes": [begun.cache.nbytes, score.cache.nbytes],
        }
    if trial.arm.name != ECHO or trial.seed != 0:
        return {"whole": whole}
    longest = max(texts, key=lambda text: len(text.tokens))
    found: dict[str, Any] = {"text": longest.path.name, "bytes": min(STEPPED_BYTES, len(longest.tokens))}
    for name, lengths, most in (("whole", SEGMENTS, None), ("first", (1, *SEGMENTS), STEPPED_BYTES)):
        found[name], started = {}, time.perf_counter()
        for length in lengths:
            score = bits_per_byte(network, longest.tokens, segment_length=length, max_bytes=most)
            found[name][str(length)] = score.bits_per_byte
        found[f"{name}_seconds"] = time.perf_counter() - started
    return {"whole": whole, "segments": found}
