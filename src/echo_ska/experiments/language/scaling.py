"""scaling: how the loss on unseen text falls as Echo grows, and what that would say of echo-1b if it went on so.

Five widths of the preset echo-1m, 33 thousand to 0.92 million parameters without embedding and head, each trained byte
by byte on the same number of bytes: of one novel, read 8.6 times, unless `--text` gives more, a folder in the form of
`language-model`. Each tries the same learning rates with seed 0, judged by other text than is reported, and runs its
seeds at its best. Then L(N) = E + A / N^a is fitted to the means; the interval is of laws that are fitted to resampled
seeds. L is in bits per byte of unseen text at the training's length (`evaluation.context_length`).

The extrapolation to echo-1b leaves the measured sizes by three orders of magnitude, and is of bytes of novels after a
fixed, small amount of text, not of tokens of the web: it says where the line points, not what would be found. A model
that rereads one novel may gain less by size than one that reads new text. Three to four hours on one core, most of them
for the two largest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from echo_ska.experiments.language.scaling_report import draw, reading, rows
from echo_ska.experiments.trials.comparison import Results
from echo_ska.experiments.trials.recorded import records_named
from echo_ska.experiments.trials.studies import print_rows, seed_count, study_files
from echo_ska.experiments.trials.text_trial import Scoring, TextTrial
from echo_ska.experiments.trials.texts import TEST, TRAIN, VALID, ShippedNovels, TextFolder
from echo_ska.experiments.trials.trial import Arm
from echo_ska.experiments.trials.tuning import Comparison
from echo_ska.models import EchoForCausalLM
from echo_ska.models.presets import find_preset
from echo_ska.training import RunRecord

NAME = "scaling"
SEEDS = 3


@dataclass(frozen=True)
class ScalingPlan:
    """What is run.

    Attributes:
        widths: of the models, ascending; all else follows from it as in echo-1m.
        rates, tuning_steps: learning rates that each tries, and how long.
        steps, batch_size, length: of every training.
        scored_bytes: of held-out text, for the choice of a rate and again, of other text, for the report.
    """

    widths: tuple[int, ...] = (24, 40, 64, 96, 128)
    rates: tuple[float, ...] = (4e-3, 8e-3, 1.6e-2, 3.2e-2)
    steps: int = 2000
    tuning_steps: int = 500
    batch_size: int = 16
    length: int = 256
    scored_bytes: int = 65_536

    @property
    def read(self) -> int:
        """Bytes that a training reads, each as often as it comes."""
        return self.steps * self.batch_size * self.length

    def scoring(self, part: str) -> Scoring:
        """`scored_bytes` of a part, from contexts of the training's length."""
        return Scoring(part, (self.length,), self.scored_bytes // (self.length // 2))


PLAN = ScalingPlan()
QUICK = ScalingPlan(widths=(24, 40, 64), steps=100, scored_bytes=8192)


def arm(width: int) -> Arm:
    """echo-1m at another width, four heads whose keys are three quarters as wide as values."""
    fields = {name: value for name, value in find_preset("echo-1m").fields.items() if name != "vocab_size"}
    return Arm(f"width {width}", fields | {"hidden_size": width, "rank": 3 * (width // 4) // 4})


def comparison(texts: TextFolder, plan: ScalingPlan = PLAN) -> Comparison:
    """What is run: a trial a width, the largest first."""
    trials = [
        TextTrial(
            NAME,
            arm(width),
            texts,
            plan.steps,
            plan.batch_size,
            plan.length,
            plan.rates[0],
            (plan.scoring(TEST),),
            measure=training_text,
        )
        for width in reversed(plan.widths)
    ]
    return Comparison(trials, plan.rates, (plan.scoring(VALID),), plan.tuning_steps)


def training_text(network: EchoForCausalLM, trial: TextTrial) -> dict[str, Any]:
    """`training_bytes`: of the text that was learnt, each counted once."""
    return {"training_bytes": sum(trial.texts.parts[TRAIN]["bytes"])}


def run(
    console: Console, *, seeds: int | None = None, quick: bool = False, text: Path | None = None, device: str = "cpu"
) -> list[RunRecord]:
    """Run what is not recorded, print the table, draw the picture.

    Args:
        console: where to show.
        seeds: of every size at its best rate, three else; one in the quick form.
        quick: three sizes, a twentieth of the steps, the rates of the full records; recorded apart.
        text: a folder of texts, see `TextFolder.read`; None = the two novels that the package ships.
        device: where models are trained and scored, "cpu" or "cuda".

    Raises:
        ValueError: the text cannot be read, or is too short for what is scored.
        JobError: a run failed; those that ended before it are recorded.
    """
    path, picture = study_files(NAME, quick)
    plan, count = QUICK if quick else PLAN, seed_count(seeds, 1 if quick else SEEDS)
    texts = ShippedNovels.read_shipped() if text is None else TextFolder.read(text, NAME)
    for part in (VALID, TEST):
        plan.scoring(part).refuse_short(texts)
    learnt = texts.parts[TRAIN]
    said = f"Every model learns {reading(learnt['files'], plan.read, sum(learnt['bytes']))}."
    if text is None:
        said += " With --text FOLDER it is text of yours."
    console.print(said, markup=False, highlight=False, soft_wrap=True)
    planned = comparison(texts, PLAN)
    if quick:
        planned = planned.at_recorded_rates(comparison(texts, QUICK).trials, study_files(NAME)[0])
    results = planned.on(device).run(console, count, path)
    print_rows(console, "Bits per byte of unseen text by size", rows(results))
    draw(results, picture)
    console.print(f"Records: {path}, picture: {picture}", markup=False, highlight=False, soft_wrap=True)
    return [record for records in results.values() for record in records]


def recorded_results(path: Path, plan: ScalingPlan = PLAN) -> Results:
    """What `run` has recorded of the text that the newest record was trained on; nothing while a size is missing."""
    found = records_named(NAME, path)
    if not found:
        return {}
    asked = comparison(TextFolder.of_records(found), plan)
    results = asked.recorded(path)
    return results if len(results) == len(asked.trials) else {}
