"""The training loop: one for every model and every task, in one process or many.

A step is a pure function of the weights, the optimiser's moments, the seed and the step's number: the batch
comes from `data.batch(step)`, the learning rate from a schedule over steps, and torch's generator is seeded
anew for each step. A run killed at any moment and started again therefore ends with the very weights of an
undisturbed one, and evaluations, however many, change nothing. What the last steps learnt is kept before it is
evaluated; a finished run that is asked for again is evaluated again, for by now something else may be measured.

Several processes, or pieces that one accumulates, are parts of the same batch. A part's mean loss counts by its
share of the scored tokens, so that any division of a batch gives the loss and the gradient of the whole.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from echo_ska.nn.divergence import divergence_gives_nan
from echo_ska.tasks import accuracy
from echo_ska.training.checkpoint import remove_partial
from echo_ska.training.config import TrainingConfig
from echo_ska.training.data import DataSource, require_vocabulary, step_seed
from echo_ska.training.device import training_device, uses_bfloat16
from echo_ska.training.engine import Engine, ShardedEngine, require_precise
from echo_ska.training.guard import check_step
from echo_ska.training.journal import Journal
from echo_ska.training.log import Observer, TrainingLog
from echo_ska.training.optimizer import learning_rate_factor, set_learning_rate
from echo_ska.training.parts import UNSCORED, Parts, draw_parts
from echo_ska.training.processes import launched_processes, start_processes
from echo_ska.training.progress import Progress
from echo_ska.training.records import RunRecord, make_record
from echo_ska.training.reporter import Reporter
from echo_ska.training.resume import checkpoint_to_resume, describe_model, describe_optimizer, own_folder, require_json
from echo_ska.training.scale import ScaleConfig
from echo_ska.training.zero import ZeroEngine, deepspeed_plugin

Evaluation = Callable[[nn.Module, int], dict[str, Any]]
"""Called with the model, in eval mode and without gradients, and the steps done; returns figures (JSON)."""

ENGINES: dict[str, type[Engine]] = {
    "auto": Engine,
    "ddp": Engine,
    "fsdp": ShardedEngine,
    "deepspeed": ZeroEngine,
}
"""By strategy; "context" has its own, which is imported with the models alone: see `_engine`."""


def train(
    model: nn.Module,
    data: DataSource,
    config: TrainingConfig,
    *,
    scale: ScaleConfig | None = None,
    check: Callable[[], object] | None = None,
    evaluate: Evaluation | None = None,
    directory: str | Path | None = None,
    reporter: Reporter | None = None,
    observers: Sequence[Observer] = (),
    resume: bool = True,
    name: str = "training",
) -> RunRecord:
    """Train `model` in place, for `config.steps` steps.

    Started by `torchrun` or `accelerate launch`, every process calls it with the same arguments: the first writes,
    evaluates and reports, all end with the same weights, and an error in one is raised in all.

    Args:
        model: `model(input_ids=, labels=)` returns `.loss`, a mean over the scored tokens, and `.logits` [B, T, V], or
            `.correct` and `.scored`, counted without them; with neither (a regression, say) there is no accuracy. Built
            (and seeded) by the caller; a resumed run needs one of the same architecture, whose weights are overwritten.
        data: gives the batch of every step.
        config: see `TrainingConfig`.
        scale: see `ScaleConfig`; None takes every batch at once.
        check: called once before the first step, in the first process, while the others wait, when the run's folder is
            held and its checkpoint is one to go on from; what it raises is raised in all of them, and nothing was
            overwritten.
        evaluate: called every `config.evaluate_every` steps and after the last, whose checkpoint is written by then, in
            the first process, with a whole model; its figures go to log and record. Of a finished run it is called
            once more; where other figures come out, they take the place of the log's.
        directory: where checkpoints and log.jsonl are kept, on a disk that all processes see; None keeps nothing.
        reporter: told of every step, with the figures of the newest line of the log.
        observers: told of every line of the log too, in full, in the first process.
        resume: continue from the newest checkpoint in `directory`, by whatever number of processes it was written.
            False refuses a directory that holds any.
        name: the record's name.

    Returns:
        A record whose configuration has `training`, `data` and `model`, and whose figures are the last log
        line's (`loss` in nats and `accuracy` of scored tokens, both means over the steps since the line
        before; `tokens_per_second`), the last evaluation's, and `parameters`; of several processes, their number
        too. Nothing is written by it: see `records.append`.

    Raises:
        ValueError: if a checkpoint is damaged or of another configuration or model, naming what differs; another
            process trains in `directory`; a description is no JSON; the data has token ids that the model lacks; a
            precision, device, strategy or division of the batch cannot be had; or the model returns tuples, or has
            parameters to be trained in half precision. Nothing is overwritten.
        FloatingPointError: for a loss or gradient that is not finite, or a spike; the weights stay as the step
            before left them.
        OSError: if a checkpoint or the log cannot be written.
    """
    scale = scale or ScaleConfig()
    device = training_device(config)
    use_bfloat16 = uses_bfloat16(config, device)
    configuration = {
        "training": dataclasses.asdict(config),
        "data": data.describe(),
        "model": describe_model(model),
    }
    folder = None if directory is None else Path(directory)
    plugin = deepspeed_plugin(config) if scale.strategy == "deepspeed" and launched_processes() > 1 else None
    with (
        start_processes(device, scale, plugin) as (accelerator, processes),
        _checkpointing(model, scale),
        own_folder(folder, processes),
        ExitStack() as at_the_end,
    ):
        parts = Parts(data, processes, scale.accumulate, whole=scale.strategy == "context")
        processes.together(lambda: require_json(configuration))
        processes.together(lambda: require_vocabulary(model, data))
        processes.together(lambda: require_precise(model))
        checkpoint, resumed_by = None, configuration | {"optimizer": describe_optimizer(model, config)}
        if folder is not None:
            checkpoint = processes.on_first(lambda: checkpoint_to_resume(folder, resumed_by, resume))
        if check is not None:
            processes.on_first(check)
        engine = _engine(scale.strategy)(model, config, scale, accelerator, device, processes, checkpoint)
        at_the_end.callback(engine.close)
        first_step = 0 if checkpoint is None else checkpoint.step
        progress = Progress() if checkpoint is None else Progress(**checkpoint.state)
        log = None if folder is None else processes.on_first(lambda: _continue_log(folder, first_step))
        journal = Journal(processes, log, observers, reporter)
        shown: dict[str, float] = {}
        journal.report(first_step, config.steps, shown)

        started = time.perf_counter() - progress.seconds
        engine.network.train()
        for step in range(first_step, config.steps):
            steered = _take_step(engine, parts, step, progress, use_bfloat16, folder)
            done = step + 1
            if _is_due(done, config.log_every, config):
                means = progress.close_window()
                progress.figures |= means
                journal.write({"step": done, **means, **steered, "seconds": time.perf_counter() - started})
                shown = means
            # Of every step: it may take a minute, and reporters limit themselves.
            journal.report(done, config.steps, shown)
            if evaluate is not None and done < config.steps and _is_due(done, config.evaluate_every, config):
                evaluated = _evaluate(evaluate, engine, done)
                progress.figures |= evaluated
                journal.write({"step": done, "evaluation": evaluated})
            progress.seconds = time.perf_counter() - started
            if folder is not None and _is_due(done, config.checkpoint_every, config):
                engine.save(folder, done, resumed_by, dataclasses.asdict(progress))
        if evaluate is not None:
            evaluated = _evaluate(evaluate, engine, config.steps)
            progress.figures |= evaluated
            journal.write_last({"step": config.steps, "evaluation": evaluated})
            progress.seconds = time.perf_counter() - started
        engine.finish()

    figures = progress.figures | {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    if processes.size > 1:
        figures["processes"] = processes.size
    return make_record(name, configuration, figures, seed=config.seed, seconds=progress.seconds)


def _is_due(done: int, every: int, config: TrainingConfig) -> bool:
    """Whether what comes every so many steps, 0 for never, comes now: after the last step all of it does."""
    return done == config.steps or (every > 0 and done % every == 0)


def _take_step(
    engine: Engine, parts: Parts, step: int, progress: Progress, use_bfloat16: bool, folder: Path | None
) -> dict[str, float]:
    """Change the weights and count the step; returns its learning rate and the gradients' norm, as the log has them."""
    started, config = time.perf_counter(), engine.config
    factor = learning_rate_factor(step, config.steps, config.warmup_steps, config.final_learning_rate_fraction)
    set_learning_rate(engine.optimizer, factor)
    counted, norm = _gradients(engine, parts, step, use_bfloat16)
    try:
        check_step(step, counted.loss_sum, norm, progress.recent_losses, engine.scale, folder)
    except FloatingPointError:
        engine.discard()
        raise
    engine.step()
    counted.training_seconds = time.perf_counter() - started
    progress.add(counted)
    return {"learning_rate": config.learning_rate * factor, "gradient_norm": norm}


def _gradients(engine: Engine, parts: Parts, step: int, use_bfloat16: bool) -> tuple[Progress, float]:
    """Forward and backward passes of a step: what was counted, of all processes, and the gradients' norm."""
    counted, losses = Progress(steps=1), []
    drawn = draw_parts(parts, step)
    for index, (part, batch, share, scored_share) in enumerate(drawn):
        # One seed a part: processes must not drop the same units, and must not depend on how many of them there are.
        torch.manual_seed(step_seed("model" if parts.total == 1 else f"model/{part}", engine.config.seed, step))
        batch = {key: value.to(engine.device, non_blocking=True) for key, value in engine.own(batch).items()}
        try:
            with divergence_gives_nan(), engine.piece(last=index == len(drawn) - 1):
                output = _output(engine, parts, batch, scored_share, use_bfloat16)
                # Engines take the mean over processes where the sum is due.
                engine.backward(output.loss if share is None else output.loss * (share * parts.processes.size))
        except ArithmeticError as error:
            # Beside others, a process that did not raise in all of them cannot go on.
            if not isinstance(error, _DivergedError) and (parts.processes.size > 1 or _is_a_bug(error)):
                raise
            return Progress(steps=1, loss_sum=math.nan), math.nan
        loss = output.loss.detach().float()
        losses.append(loss if share is None else loss * share)
        if share != 0:
            correct, scored = _count(output, batch)
            counted.correct += correct
            counted.scored += scored
        read = batch["input_ids"] if "input_ids" in batch else batch["inputs_embeds"]
        counted.tokens += read.shape[:2].numel()
    *parts_of_loss, norm = torch.stack([*losses, engine.clip_gradients().float()]).tolist()
    sums = parts.processes.sum([sum(parts_of_loss), counted.correct, counted.scored, counted.tokens])
    counted.loss_sum = sums[0]
    counted.correct, counted.scored, counted.tokens = (round(figure) for figure in sums[1:])
    return counted, norm


class _DivergedError(FloatingPointError):
    """Raised in all processes: a forward pass met numbers that are not finite in one of them."""


def _output(engine: Engine, parts: Parts, batch: dict[str, Tensor], scored: float, use_bfloat16: bool) -> Any:
    """The model's output for a piece of the batch.

    Compiled layers, and models of one's own, raise where their numbers are not finite. Processes that wait for each
    other in the backward pass alone agree on it before that, by one number.
    """
    output: Any = None
    error: ArithmeticError | None = None
    try:
        with torch.autocast(engine.device.type, torch.bfloat16, enabled=use_bfloat16):
            output = engine.forward(batch, scored)
    except ArithmeticError as raised:
        if _is_a_bug(raised) or not engine.reads_alone:
            raise
        error = raised
    if engine.reads_alone and any(parts.processes.sum([error is not None])):
        raise _DivergedError("the model's numbers are not finite") from error
    return output


def _is_a_bug(error: ArithmeticError) -> bool:
    return isinstance(error, ZeroDivisionError)


def _count(output: Any, batch: dict[str, Tensor]) -> tuple[int, int]:
    """Right answers and scored tokens of a piece; zeros for a model without logits."""
    if getattr(output, "scored", None) is not None:
        return int(output.correct), int(output.scored)
    logits = getattr(output, "logits", None)
    if logits is None:
        return 0, 0
    if "labels" in batch:
        return accuracy(logits.detach(), batch["labels"])
    labels = batch["shift_labels"]  # a part of a sequence: each is the label of the next token
    return int((logits.detach().argmax(dim=-1) == labels).sum()), int((labels != UNSCORED).sum())


def _engine(strategy: str) -> type[Engine]:
    if strategy != "context":
        return ENGINES[strategy]
    from echo_ska.training.context import ContextEngine

    return ContextEngine


def _continue_log(folder: Path, first_step: int) -> TrainingLog:
    remove_partial(folder)
    log = TrainingLog(folder / "log.jsonl")
    log.truncate(first_step)
    return log


@contextmanager
def _checkpointing(model: nn.Module, scale: ScaleConfig) -> Iterator[None]:
    """Activation checkpointing while the model is trained, by Hugging Face's switch."""
    if not scale.checkpoint_activations or any(
        getattr(part, "gradient_checkpointing", False) for part in model.modules()
    ):
        yield
        return
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ValueError(f"checkpoint_activations: {type(model).__name__} has no gradient checkpointing; leave it out.")
    # Releases of transformers differ in its name.
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        getattr(model, f"{name}_checkpointing_disable")()


def _evaluate(evaluate: Evaluation, engine: Engine, done: int) -> dict[str, Any]:
    """The figures of an evaluation, which the first process makes of a whole model."""

    def measure() -> dict[str, Any]:
        whole.eval()
        try:
            with torch.no_grad():
                return evaluate(whole, done)
        finally:
            whole.train()

    with engine.whole_model() as whole:
        return engine.processes.on_first(measure)
