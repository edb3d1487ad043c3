"""Every verdict of every claim can be reached by records, from files to words."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from made_up import made_up, of_text_trial, write_comparison, write_trials

from echo_ska.convert.measure import CACHE_LENGTHS
from echo_ska.experiments.algebra import state_precision
from echo_ska.experiments.claims import CLAIMS, Evidence, Level, weigh
from echo_ska.experiments.claims.claim import judge
from echo_ska.experiments.claims.filters import Ablation
from echo_ska.experiments.demo import seeds as demo_seeds
from echo_ska.experiments.language import (
    language_model,
    language_model_50m,
    language_model_180m,
    replace_attention,
    zero_shot,
)
from echo_ska.experiments.language.language_model_results import ECHO
from echo_ska.experiments.language.replace_attention import NAME
from echo_ska.experiments.language.replace_attention_results import ARMS
from echo_ska.experiments.recall import (
    aids,
    cliff,
    filter_ablation,
    gradient_flow,
    length_conditioning,
    length_generalisation,
    memory_first,
    mqar_frontier,
    mqar_grid,
    recall_per_byte,
    transfer,
    write_gate,
)
from echo_ska.experiments.regression import in_context_regression as experiment
from echo_ska.experiments.state import context_parallel
from echo_ska.experiments.trials.arms import AIDED, NO_POSITIONS
from echo_ska.experiments.trials.texts import TextFolder
from echo_ska.experiments.trials.trial import Question
from echo_ska.training import RunRecord
from echo_ska.training.records import append

CLAIM = {claim.key: claim for claim in CLAIMS}
YES, PARTLY, NO, IN_PART = Level.REPRODUCED, Level.PARTLY, Level.NOT_REPRODUCED, Level.IN_PART
Write = Callable[[Path], None]


def compared(experiment: Any, figures: dict[str, float], seeds: int | None = None) -> Write:
    """Arms that answer every question alike."""
    return lambda folder: write_comparison(
        folder / f"{experiment.NAME}.jsonl",
        experiment.comparison(),
        seeds or experiment.SEEDS,
        lambda arm, _: figures[arm],
    )


def arms(ssm: float, attention: float, ska: float, aided: float | None = None) -> dict[str, float]:
    return {
        "ssm": ssm,
        AIDED: ssm if aided is None else aided,
        "ssm+attention": attention,
        NO_POSITIONS: attention,
        "ssm+ska": ska,
    }


def transferred(figures: dict[str, float], with_dropout: float) -> Write:
    """Of the transfer tasks, SSM+SKA with gate dropout besides."""

    def write(folder: Path) -> None:
        compared(transfer, figures)(folder)
        path = folder / f"{transfer.NAME}.jsonl"
        write_comparison(path, transfer.dropout_comparison(), transfer.SEEDS, lambda *_: with_dropout)

    return write


def deepened(plain: dict[str, float], changed: dict[str, float]) -> Write:
    """Of the transfer tasks, the three models without and with stochastic depth."""

    def write(folder: Path) -> None:
        compared(transfer, plain)(folder)
        figures = {changed_name: changed[arm] for arm, changed_name in transfer.WITH_DEPTH.items()}
        path = folder / f"{transfer.NAME}.jsonl"
        write_comparison(path, transfer.depth_comparison(), transfer.SEEDS, lambda arm, _: figures[arm])

    return write


def laid_out(below: float, dropped: float, first: float, attention: float) -> Write:
    """SKA in each layout, long needles all found, and attention in all of them."""
    found = {
        layouts["ssm+ska"]: value
        for layouts, value in (
            (memory_first.BELOW, below),
            (memory_first.DROPPED, dropped),
            (memory_first.FIRST, first),
        )
    }

    def answer(arm: str, question: str) -> float:
        return 1.0 if question == memory_first.LONG_NEEDLES else found.get(arm, attention)

    return lambda folder: write_trials(folder / "memory-first.jsonl", memory_first.trials(), memory_first.SEEDS, answer)


def stored(two_bytes: float, one_byte: float, always: float = 0.0) -> Write:
    """Right answers by bytes a number, where four recall 0.5, and what is lost where every pair is rounded."""
    found = {"float64": 0.4, "float32": 0.5, "float16": two_bytes, "bfloat16": two_bytes, "int8": one_byte}

    def write(folder: Path) -> None:
        settings = state_precision.FULL
        cells = {
            f"{memory}, {name}, {way}, {load:g}": {"accuracy": accuracy - (always if way == "always" else 0.0)}
            for memory in state_precision.MEMORIES
            for name, accuracy in found.items()
            for way in state_precision.WAYS
            for load in settings.loads
        }
        ranks = {memory: dict.fromkeys(found, 32) for memory in state_precision.MEMORIES}
        for kind in state_precision.KINDS:
            for seed in range(state_precision.SEEDS):
                figures = {"cells": cells, "ranks": ranks, "bytes": settings.bytes}
                record = made_up("state-precision", settings.configuration(kind), figures, seed)
                append(record, folder / "state-precision.jsonl")

    return write


def aimed(needles: float, grid: float, tasks: float, control: float = 0.9) -> Write:
    """What SSM+SKA answers in the three comparisons, and its controls of the tasks."""

    def write(folder: Path) -> None:
        compared(length_generalisation, arms(0.02, 0.05, needles))(folder)
        compared(mqar_grid, arms(0.03, 0.5, grid))(folder)
        compared(transfer, arms(0.3, control, tasks))(folder)

    return write


def raised(best: float, worst: float = 0.5) -> Write:
    """One change, and all others, where the start recalls 0.7 with seed 0 and 0.75 with the others."""

    def answer(arm: str, _: str) -> float:
        return best if arm == "one wide head" else worst

    def write(folder: Path) -> None:
        path, comparison = folder / "recall-per-byte.jsonl", recall_per_byte.comparison()
        changed = [trial for trial in comparison.trials if trial.arm.name != recall_per_byte.START]
        (start,) = (trial for trial in comparison.trials if trial not in changed)
        write_comparison(path, dataclasses.replace(comparison, trials=changed), mqar_frontier.SEEDS, answer)
        write_comparison(path, dataclasses.replace(comparison, trials=[start]), mqar_frontier.SEEDS, lambda *_: 0.75)
        write_trials(path, [start.with_(learning_rate=comparison.rates[0])], 1, lambda *_: 0.7)

    return write


def gated(far: dict[str, float], other: dict[str, float]) -> Write:
    """By how the gate is put: in the longest sequences, and on other tasks; 0.8 by those that are not named."""

    def write(folder: Path) -> None:
        path = folder / "write-gate.jsonl"
        for trials, figures in ((write_gate.long_trials(), far), (write_gate.transfer_trials(), other)):
            write_trials(path, trials, write_gate.FIRST_SEED + write_gate.SEEDS, lambda arm, _: figures.get(arm, 0.8))  # noqa: B023

    return write


def ablated(recall: Callable[[str], float], orbit: Callable[[str, int], float]) -> Evidence[Ablation]:
    """By arm, and by filter and distance."""

    def record(accuracy: float, questions: tuple[Question, ...]) -> list[RunRecord]:
        return [made_up("filter-ablation", {}, {"accuracy": {question.name: accuracy for question in questions}})]

    recalled = {
        trial.arm.name: record(recall(trial.arm.name), trial.questions) for trial in filter_ablation.recall_trials()
    }
    walked = {
        distance: {
            trial.arm.name: record(orbit(trial.arm.name.split(",")[0], distance), trial.questions)
            for trial in filter_ablation.orbit_trials(distance)
        }
        for distance in filter_ablation.DISTANCES
    }
    return Evidence(Ablation(recalled, walked), tuple(recalled["K = 0, ridge learnt"]))


def conditioned(accuracy: float, growth: float, diverged: int | None = None) -> Write:
    """Of length-conditioning; the training of the seed `diverged` ended in no number."""

    def more(trial: Any) -> dict[str, Any]:
        if trial.seed == diverged:
            return {"diverged": "the loss is nan"}
        found = {}
        for question in trial.questions:
            grown = growth if question.length > 64 else 1.0
            found[question.name] = {"lambda_min": [0.1 * grown], "lambda_max": [9.0], "margin": 5 * grown}
        return {"ridge": [1.0], "conditioning": found}

    answer = lambda _, question: 0.9 if question == "64" else accuracy  # noqa: E731
    return lambda folder: write_trials(
        folder / "length-conditioning.jsonl", length_conditioning.trials(), 3, answer, more
    )


def flowing(ska: float, attention: float, rank: float) -> Write:
    def more(trial: Any) -> dict[str, Any]:
        faded = ska if trial.arm.name == "ssm+ska" else attention
        row = {"norm": 0.5, "faded": faded, "participation": 9.0, "rank": rank}
        rows = {question.name: row for question in trial.questions}
        return {"gradient": {"untrained": rows, "trained": rows}}

    return lambda folder: write_trials(folder / "gradient-flow.jsonl", gradient_flow.trials(), 3, lambda *_: 0.9, more)


def broken_down(by_rank: float, by_width: float, seeds: int = 2) -> Write:
    def answer(arm: str, _: str) -> float:
        width, rank = (int(part.split()[1]) for part in arm.split(","))
        return 0.4 + by_rank * rank / 16 + by_width * width / 128

    return lambda folder: write_trials(folder / "cliff.jsonl", cliff.trials(), seeds, answer)


def seeded(at_million: float, near: float = 1.0, seeds: int = 10) -> Write:
    def write(folder: Path) -> None:
        for seed in range(seeds):
            figures = {"accuracy": {"64": near, "65536": near, "1048576": at_million}}
            figures["answers"] = dict.fromkeys(figures["accuracy"], 16)
            append(made_up(demo_seeds.NAME, {}, figures, seed), folder / "demo-seeds.jsonl")

    return write


def kept(ska: tuple[int, int], ratio: float) -> Write:
    """A preset's SKA state at the shortest and the longest length, and the demo's, constant."""

    def write(folder: Path) -> None:
        lengths = dict(zip(("1024", "131072"), ska, strict=True))
        figures = {
            "model": {"parameters": 9, "state_bytes": {n: {"ska": b, "total": b} for n, b in lengths.items()}},
            "control": {"state_bytes": {n: {"full_attention": ratio * b} for n, b in lengths.items()}},
            "ratio_of_kv_cache_to_ska": dict.fromkeys(lengths, ratio),
        }
        append(made_up("state-bytes", {"preset": "p", "dtype": "fp32"}, figures), folder / "state-bytes.jsonl")
        (folder / "demo.json").write_text(DEMO)

    return write


DEMO = """{"models": [{"name": "ssm+ska", "state_bytes": {"64": 8, "128": 8}, "accuracy": {"64": 1.0, "128": 1.0}}],
"settings": {"seed": 0}, "seconds": 1.0, "commit": null, "dirty": null, "hardware": {}, "versions": {},
"chance": 0.03, "training_length": 64}"""


def timed(pytorch: tuple[float, float], kernels: float, decoding: float, last: float = 1.0, grown: int = 0) -> Write:
    """Seconds against softmax attention's 1, of a token at the longest context against the shortest, and bytes."""

    def write(folder: Path) -> None:
        seconds = {"ska": (kernels, kernels), "ska-pytorch": pytorch, "softmax": (1.0, 1.0)}
        timings = {
            name: {str(n): {"forward": [s], "forward_backward": [s]} for n, s in zip((512, 2048), both, strict=True)}
            for name, both in seconds.items()
        }
        routes = {name: {"label": name, "softmax": name == "softmax"} for name in seconds}
        tokens = {
            "ska": {"1024": decoding, "2048": decoding * last},
            "softmax": {"1024": 1.0, "2048": 1.0},
        }
        figures = {
            "routes": routes,
            "training": timings,
            "decoding": {
                name: {"label": name} | {n: {"seconds": [s], "state_bytes": 8} for n, s in row.items()}
                for name, row in tokens.items()
            },
            "growth": {
                "tokens": 100,
                "token_seconds": {"10": 1.0, "100": last},
                "bytes_settled": 0,
                "bytes_after": grown,
                "state_bytes": 8,
                "error": 1e-15,
            },
        }
        configuration = {"name": "full", "device": "cpu", "prefill": [8, 4]}
        append(made_up("bench", configuration, figures), folder / "bench.jsonl")

    return write


def fitted(error: float, fall: float) -> Write:
    def write(folder: Path) -> None:
        rows = [[e, e, e, 0.0, 0.0, 1.0] for e in (error * fall, error)]
        systems = {name: {"bias": [error], "rate": [1.0], "rows": {"0.1, 1": rows}} for name in ("linear", "sphere")}
        configuration = {"lengths": [64, 1024], "noises": [0.1], "ridges": [1.0]}
        for seed in range(8):
            append(
                made_up("operator-error", configuration, {"systems": systems}, seed), folder / "operator-error.jsonl"
            )

    return write


def one_off(own: float, whitened: float) -> Write:
    def write(folder: Path) -> None:
        names = [f"K={power}" for power in range(5)]
        reads = {
            name: {"one_off": [whitened, own if power else 1.0, 0, 0], "persistent": [1.0, 0, 0, 0]}
            for power, name in enumerate(names)
        }
        configuration = {"filters": names, "places": ["apart"], "one_offs": [6, 24], "moduli": [0.5]}
        figures = {
            "reads": {"apart, 24, 0.1": reads},
            "modes": {name: [0.5**power] for power, name in enumerate(names)},
        }
        for seed in range(8):
            append(made_up("one-off-distractors", configuration, figures, seed), folder / "one-off-distractors.jsonl")

    return write


def mapped(random: float, others: float, kinds: int = 5, at_the_rule: float = 0.0) -> Write:
    """SKA's lead over each peer; at N = r + 2P another one with random keys."""

    def write(folder: Path) -> None:
        for kind in ("random", "correlated", "contextual", "rewritten", "noisy queries")[:kinds]:
            lead = random if kind == "random" else others
            leads = {1: lead, 5: at_the_rule if kind == "random" else lead, 9: -0.3}
            cells = {f"2, {load}": [0.5 + of_ska, *[0.5] * 4, *[0.0] * 8] for load, of_ska in leads.items()}
            for seed in range(5):
                configuration = {"kind": kind, "loads": list(leads), "widths": [2]}
                figures = {"cells": cells}
                append(made_up("recall-map", configuration, figures, seed), folder / "recall-map.jsonl")

    return write


def at_equal_bytes(ska: float, hebbian: float, others: float) -> Write:
    def answer(arm: str, _: str) -> float:
        return ska if arm.startswith("ska") else hebbian if arm.startswith("linear") else others

    return lambda folder: write_comparison(
        folder / "mqar-frontier.jsonl", mqar_frontier.comparison(), mqar_frontier.SEEDS, answer
    )


def regressed(ska: float, softmax: float, by_hand: float = 1e-9) -> Write:
    """Distances to ridge; those of the other arms lie between."""

    def write(folder: Path) -> None:
        path = folder / "in-context-regression.jsonl"
        pairs = (experiment.SEEN, "4", "12", "24", "48", "96")

        def record(run: Any, distance: float) -> None:
            quantities = {name: dict.fromkeys(pairs, distance) for name in ("ridge", "hebbian", "error")}
            figures = {"learning_rate": run.learning_rate, "training_loss": 0.5, "measured": {"1000": quantities}}
            if run.arm == experiment.BY_HAND:
                names = ("distance", "ridge error", "hebbian error")
                figures["known"] = {name: dict.fromkeys(pairs, 0.5) for name in names}
            recorded_run = run.recorded_run()
            append(made_up(experiment.NAME, recorded_run.configuration, figures, recorded_run.seed), path)

        record(experiment.BY_HAND_RUN, by_hand)
        for (arm, _), candidates in experiment.tries().items():
            distance = ska if arm.startswith("SKA") else softmax if arm.startswith("softmax") else 0.5
            for run in candidates:
                record(run, distance)
            for seed in range(1, experiment.SEEDS):
                record(dataclasses.replace(candidates[0], seed=seed), distance)

    return write


def read_on(
    at_training: float,
    at_longest: float,
    echo_longest: float = 2.0,
    apart: float = 0.0,
    plan: language_model.TextPlan = language_model.PLAN,
) -> Write:
    """Bits per byte of the controls, where Echo has 2.1 at the training's length."""
    part = {"files": ["a.txt"], "bytes": [99_999], "blake2b": "0"}
    texts = TextFolder(None, json.dumps(dict.fromkeys(("train", "valid", "test", "wikitext2"), part)))

    def bits(arm: str, _: str, context: int) -> float:
        far = context > plan.length
        if arm == ECHO:
            return echo_longest if far else 2.1
        return at_longest if far else at_training

    def write(folder: Path) -> None:
        comparison = plan.comparison(texts)
        for trial in comparison.trials:
            runs = [
                *comparison.candidates(trial),
                *(trial.with_(seed=seed, learning_rate=comparison.rates[0]) for seed in range(plan.seeds)),
            ]
            for run in runs:
                whole = {"a.txt": {"bits_per_byte": 2.0, "bytes": 9, "state_bytes": [8, 8]}}
                more: dict[str, Any] = {} if run.measure is None else {"whole": whole}
                if run.measure is language_model.readings and run.arm.name == ECHO and run.seed == 0:
                    more["segments"] = {name: {"512": 2.0, "4096": 2.0 + apart} for name in ("whole", "first")}
                device = "cpu" if plan is language_model.PLAN else "cuda"  # where it is trained
                append(of_text_trial(run, bits, device, **more), folder / f"{plan.name}.jsonl")

    return write


def hidden(near: float, far: float, state: int = 8, memory: float = 1.0) -> Write:
    """Right answers at the shortest and at longer texts, the state's size after the longest and the memory taken."""

    def write(folder: Path) -> None:
        for one in zero_shot.asked(None):
            if one.kind != "recall":
                continue
            rows = [
                {
                    "length": length,
                    "accuracy": near if length == zero_shot.LENGTHS[0] else far,
                    "standard_error": 0.05,
                    "chance": 0.1,
                    "samples": 20,
                    "state_bytes": state if length == zero_shot.LENGTHS[-1] else 8,
                    "peak_memory_bytes": 1000 * (memory if length == zero_shot.LENGTHS[-1] else 1),
                }
                for length in zero_shot.LENGTHS
            ]
            configuration = one.configuration("a model") | {"files": {}}
            append(made_up("zero-shot", configuration, {"by_length": rows}), folder / "zero-shot.jsonl")

    return write


def aided(ska: float, peers: float, bare: float) -> Write:
    """SKA's mixers and their peers with all aids, and without any one of them."""

    def answer(arm: str, _: str) -> float:
        mixer = ska if arm.startswith("SKA") else peers
        return mixer if arm.endswith(aids.ALL) else mixer + bare - ska

    def write(folder: Path) -> None:
        path = folder / "aids.jsonl"
        write_comparison(path, aids.comparison(), aids.SEEDS, answer)
        trials = [
            aids.trial(mixer, taken).with_(learning_rate=aids.RATES[0])
            for mixer in aids.MIXERS
            for taken in aids.TAKEN
            if taken != aids.ALL
        ]
        write_trials(path, trials, aids.SEEDS, answer)

    return write


def converted(text: float, copied: float, original: float = 2.0) -> Write:
    """Bits per byte and copies of all conversions after training, beside a control that copies everything."""

    def write(folder: Path) -> None:
        for run in replace_attention.runs():
            state = {"bits_per_byte": original, "copied": {"24": 1.0}}
            figures: dict[str, Any] = {"parameters": 9, "finetuned": state}
            if run.arm in ARMS:
                figures["finetuned"] = {"bits_per_byte": text, "copied": {"24": copied}}
                figures |= {"replaced": figures["finetuned"], "matched": figures["finetuned"]}
                figures["cache_bytes"] = {str(tokens): {"before": 9, "after": 8} for tokens in CACHE_LENGTHS}
            recorded = run.recorded_run()
            append(made_up("replace-attention", recorded.configuration, figures, run.seed), folder / f"{NAME}.jsonl")

    return write


def split(error: float, grown: int = 0, size: int = 1000) -> Write:
    """Bytes that an SKA layer sends, `grown` more at the longest, and how far results are from one process's."""

    def write(folder: Path) -> None:
        for length in context_parallel.LENGTHS:
            for world in context_parallel.PROCESSES:
                sent = {"messages": 2, "bytes": size + grown * (length == max(context_parallel.LENGTHS))}
                figures = {
                    "layers": {kind: {"forward": sent, "backward": sent} for kind in ("ska", "mamba2")},
                    "attention_bytes": 1000 * length,
                    "difference": {"logits": error, "loss": 0.0, "gradients": error},
                }
                record = made_up("context-parallel", {"tokens": length, "processes": world}, figures)
                append(record, folder / "context-parallel.jsonl")

    return write


def look(right: float, wrong: float) -> Callable[[str, int], float]:
    return lambda name, distance: right if name == f"K = {distance - 1}" else wrong


CASES: list[tuple[str, Level, Write]] = [
    ("1", YES, compared(mqar_grid, arms(0.03, 0.5, 1.0))),
    ("1", PARTLY, compared(mqar_grid, arms(0.03, 0.5, 0.95))),
    ("1", PARTLY, compared(mqar_grid, arms(0.03, 0.5, 1.0, aided=0.2))),
    ("1", NO, compared(mqar_grid, arms(0.03, 0.5, 0.8))),
    ("1", IN_PART, compared(mqar_grid, arms(0.03, 0.5, 1.0), seeds=1)),
    ("2", YES, compared(length_generalisation, arms(0.02, 0.05, 0.9))),
    ("2", PARTLY, compared(length_generalisation, arms(0.02, 0.5, 0.9))),
    ("2", NO, compared(length_generalisation, arms(0.02, 0.9, 0.95))),
    ("2", PARTLY, compared(length_generalisation, arms(0.02, 0.05, 0.9, aided=0.5))),
    ("2", NO, compared(length_generalisation, arms(0.02, 0.05, 0.95, aided=0.9))),
    ("3", YES, compared(transfer, arms(0.3, 0.6, 0.9))),
    ("3", PARTLY, compared(transfer, arms(0.3, 0.4, 0.5))),
    ("3", NO, compared(transfer, arms(0.3, 0.9, 0.9))),
    ("3", NO, transferred(arms(0.3, 0.9, 0.9), 0.96)),  # which an arm of ours does not change
    ("gate-dropout", YES, transferred(arms(0.3, 0.9, 0.8), 0.96)),
    ("gate-dropout", PARTLY, transferred(arms(0.3, 0.9, 0.8), 0.94)),
    ("gate-dropout", NO, transferred(arms(0.3, 0.97, 0.8), 0.96)),
    ("stochastic-depth", YES, deepened(arms(0.3, 0.9, 0.8), arms(0.3, 0.9, 0.96))),
    ("stochastic-depth", PARTLY, deepened(arms(0.3, 0.9, 0.8), arms(0.3, 0.9, 0.94))),
    ("stochastic-depth", NO, deepened(arms(0.3, 0.9, 0.8), arms(0.3, 0.97, 0.96))),
    ("memory-first", YES, laid_out(0.8, 0.97, 0.98, 0.9)),
    ("memory-first", PARTLY, laid_out(0.8, 0.97, 0.98, 0.99)),
    ("memory-first", PARTLY, laid_out(0.8, 0.85, 0.98, 0.9)),
    ("memory-first", NO, laid_out(0.9, 0.97, 0.98, 0.9)),
    ("state-precision", YES, stored(0.6, 0.7)),
    ("state-precision", PARTLY, stored(0.6, 0.5)),
    ("state-precision", PARTLY, stored(0.6, 0.7, always=0.02)),
    ("state-precision", NO, stored(0.52, 0.7)),
    ("aims", YES, aimed(0.995, 0.9995, 0.96)),
    ("aims", PARTLY, aimed(0.995, 0.99, 0.96)),
    ("aims", PARTLY, aimed(0.995, 0.9995, 0.96, control=0.97)),
    ("aims", NO, aimed(0.98, 0.9995, 0.96)),
    ("recall-per-byte", YES, raised(0.81)),
    ("recall-per-byte", PARTLY, raised(0.78)),
    ("recall-per-byte", NO, raised(0.752)),
    ("write-gate", YES, gated({"as in the recipe": 1.0, "dropout 0.2": 0.99, "none": 0.5}, {"as in the recipe": 0.7})),
    ("write-gate", PARTLY, gated({"as in the recipe": 1.0, "none": 0.5}, {"as in the recipe": 0.7})),
    ("write-gate", PARTLY, gated({"as in the recipe": 1.0, "dropout 0.2": 1.0, "none": 0.5}, {})),
    ("write-gate", NO, gated({"as in the recipe": 0.9}, {"as in the recipe": 0.7})),
    ("5", YES, conditioned(0.9, 20)),
    ("5", PARTLY, conditioned(0.9, 2)),
    ("5", NO, conditioned(0.8, 20)),
    ("5", IN_PART, conditioned(0.9, 20, diverged=2)),
    ("6", YES, kept((8, 8), 5000)),
    ("6", PARTLY, kept((8, 8), 1000)),
    ("6", NO, kept((8, 16), 5000)),
    ("7", YES, timed((1, 1), 1, 1)),
    ("7", PARTLY, timed((1, 1), 1, 1, last=1.4)),
    ("7", PARTLY, timed((1, 1), 1, 1, grown=10**9)),
    ("7", NO, timed((1, 1), 1, 1, last=2)),
    ("8", YES, timed((2, 2), 2, 2)),
    ("8", PARTLY, timed((2, 0.9), 0.1, 0.1)),
    ("8", NO, timed((0.1, 0.1), 0.1, 0.1)),
    ("9", YES, read_on(2.15, 2.2)),
    ("9", PARTLY, read_on(2.15, 2.03)),
    ("9", PARTLY, read_on(2.15, 2.2, apart=1e-3)),
    ("9", PARTLY, read_on(2.15, 2.3, echo_longest=2.11)),
    ("9", NO, read_on(2.09, 2.2)),
    ("9-50m", YES, read_on(2.15, 2.2, plan=language_model_50m.PLAN)),
    ("9-50m", PARTLY, read_on(2.15, 2.03, plan=language_model_50m.PLAN)),
    ("9-50m", NO, read_on(2.09, 2.2, plan=language_model_50m.PLAN)),
    ("9-180m", YES, read_on(2.15, 2.2, plan=language_model_180m.PLAN)),
    ("9-180m", PARTLY, read_on(2.15, 2.03, plan=language_model_180m.PLAN)),
    ("9-180m", NO, read_on(2.09, 2.2, plan=language_model_180m.PLAN)),
    ("10", YES, hidden(0.9, 0.5)),
    ("10", PARTLY, hidden(0.9, 0.1)),
    ("10", PARTLY, hidden(0.9, 0.5, memory=1.5)),
    ("10", PARTLY, hidden(0.9, 0.5, state=16)),
    ("10", NO, hidden(0.1, 0.1)),
    ("11", YES, flowing(0.0, 0.9, 32)),
    ("11", PARTLY, flowing(0.0, 0.1, 32)),
    ("11", NO, flowing(0.3, 0.9, 32)),
    ("seeds", YES, seeded(1.0)),
    ("seeds", PARTLY, seeded(0.75)),
    ("seeds", NO, seeded(1.0, near=0.5)),
    ("seeds", IN_PART, seeded(1.0, seeds=3)),
    ("aids", YES, aided(0.95, 0.7, 0.8)),
    ("aids", PARTLY, aided(0.95, 0.9, 0.5)),
    ("aids", NO, aided(0.7, 0.9, 0.5)),
    ("drop-in", YES, converted(2.01, 0.99)),
    ("drop-in", PARTLY, converted(2.01, 0.5)),
    ("drop-in", NO, converted(2.2, 0.99)),
    ("context-parallel", YES, split(1e-7)),
    ("context-parallel", PARTLY, split(1e-7, grown=8)),
    ("context-parallel", PARTLY, split(1e-7, size=10**7)),
    ("context-parallel", NO, split(1e-3)),
    ("cliff", YES, broken_down(0.5, 0.02)),
    ("cliff", PARTLY, broken_down(0.3, 0.02)),
    ("cliff", NO, broken_down(0.3, 0.5)),
    ("operator-error", YES, fitted(0.2, 4)),
    ("operator-error", PARTLY, fitted(1.5, 4)),
    ("operator-error", NO, fitted(0.5, 1.5)),
    ("one-off-distractors", YES, one_off(0.0, 0.01)),
    ("one-off-distractors", PARTLY, one_off(0.0, 0.8)),
    ("one-off-distractors", NO, one_off(0.9, 0.8)),
    ("recall-map", YES, mapped(0.1, 0.1)),
    ("recall-map", PARTLY, mapped(0.1, -0.1)),
    ("recall-map", PARTLY, mapped(0.1, 0.1, at_the_rule=-0.1)),
    ("recall-map", NO, mapped(-0.1, 0.1)),
    ("recall-map", IN_PART, mapped(0.1, 0.1, kinds=2)),
    ("mqar-frontier", YES, at_equal_bytes(0.9, 0.8, 0.85)),
    ("mqar-frontier", PARTLY, at_equal_bytes(0.9, 0.8, 0.95)),
    ("mqar-frontier", NO, at_equal_bytes(0.7, 0.8, 0.6)),
    ("in-context-regression", YES, regressed(0.001, 0.2)),
    ("in-context-regression", PARTLY, regressed(0.001, 0.04)),
    ("in-context-regression", PARTLY, regressed(0.001, 0.2, by_hand=0.1)),
    ("in-context-regression", NO, regressed(0.1, 0.2)),
]


@pytest.mark.parametrize(("key", "level", "write"), CASES, ids=[f"{key}-{level}" for key, level, _ in CASES])
def test_records_decide(key, level, write, tmp_path):
    write(tmp_path)
    found = weigh(CLAIM[key], tmp_path)
    assert found.verdict.level is level, found.verdict
    assert found.verdict.sentence.endswith(".")
    assert found.tables
    for table in found.tables:
        assert {len(row) for row in table.rows} == {len(table.rows[0])}
    if level is not IN_PART:
        assert None not in found.verdict.findings
        assert found.evidence.missing == ()


def test_every_measured_claim_is_in_the_table():
    judged = {key for key, _, _ in CASES} | {"4", "look-ahead"}  # judged below, by records in memory
    assert judged == set(CLAIM)
    for key in judged - {"4", "look-ahead"}:
        assert {YES, PARTLY, NO} <= {level for other, level, _ in CASES if other == key}


@pytest.mark.parametrize(
    ("level", "fixed", "learnt"), [(YES, 0.9, 0.9), (PARTLY, 0.9, 0.5), (NO, 0.5, 0.9), (NO, 0.5, 0.5)]
)
def test_the_filter_is_judged_against_the_mask(level, fixed, learnt):
    def recall(arm: str) -> float:
        return 0.5 if arm.startswith("K = 0") else fixed if "ridge 1e-3" in arm else learnt

    assert judge(CLAIM["4"], ablated(recall, look(0.9, 0.3))).level is level


@pytest.mark.parametrize(("level", "matching"), [(YES, (1, 2, 3, 4)), (PARTLY, (1, 2)), (NO, (1,))])
def test_the_look_ahead_is_judged_by_distance(level, matching):
    def orbit(name: str, distance: int) -> float:
        right = distance - 1 if distance in matching else 4 - distance
        return 0.9 if name == f"K = {right}" else 0.3

    assert judge(CLAIM["look-ahead"], ablated(lambda _: 0.5, orbit)).level is level


def test_the_ablation_is_gathered_from_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(filter_ablation, "DISTANCES", (1,))
    comparisons = [filter_ablation.recall_comparison(), filter_ablation.orbit_comparison(1)]
    for comparison in comparisons:
        write_comparison(tmp_path / "filter-ablation.jsonl", comparison, 1, lambda *_: 0.5)
    found = weigh(CLAIM["4"], tmp_path)
    assert found.verdict.level is IN_PART
    assert "2 of 3 seeds of K = 0, ridge learnt" in found.verdict.sentence
    assert len(found.evidence.records) == sum(
        (len(filter_ablation.RATES) + 1) * len(comparison.trials) for comparison in comparisons
    )


def test_an_arm_that_is_missing_leaves_nothing_judged(tmp_path):
    everything = length_generalisation.comparison()
    partial = type(everything)(everything.trials[:-1], everything.rates, everything.tuned_on)
    path = tmp_path / "length-generalisation.jsonl"
    write_comparison(path, partial, 3, lambda *_: 0.5)
    found = weigh(CLAIM["2"], tmp_path)
    assert found.verdict.level is IN_PART
    assert found.verdict.sentence == "Missing: 3 of 3 seeds of ssm+ska."
    assert found.evidence.records
    assert found.tables == ()


def test_records_of_other_settings_and_quick_ones_are_not_judged(tmp_path):
    append(made_up("transfer", {}, {}), tmp_path / "transfer-quick.jsonl")
    assert "transfer-quick.jsonl holds a quick run" in weigh(CLAIM["3"], tmp_path).verdict.sentence
    append(made_up("transfer", {}, {}), tmp_path / "transfer.jsonl")
    found = weigh(CLAIM["3"], tmp_path)
    assert found.evidence.unused == 1
    assert found.evidence.measured is None
