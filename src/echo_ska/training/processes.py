"""The processes of one training: who speaks, who waits, and one error for all."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin

from echo_ska.training.scale import ScaleConfig

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)

PATIENCE = timedelta(hours=6)
"""How long processes wait for one that evaluates or writes. One that died ends the waiting at once. Starting, and the
sums of gradients, have torch's own limits."""

FIRST_TELLS = 15.0
"""Seconds that a process leaves the first one of its machine to meet an error that it met itself."""

ACCELERATES = "ACCELERATE_"
"""With which the variables begin that Accelerate reads."""

OTHER_STRATEGIES = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG")
"""What Accelerate would do with a model behind the engine's back where ACCELERATE_USE_... is true."""

SHARED_ERRORS = (ValueError, OSError, FloatingPointError, ArithmeticError, MemoryError)


class Processes:
    """The processes that train one model together; one process is the usual case.

    Attributes:
        rank: this process's number, from 0.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1, control: Any = None) -> None:
        self.rank = rank
        self.size = size
        # A group of its own, on the CPU: what is agreed upon must not wait for a GPU, nor keep one waiting.
        self._control = control

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def together(self, action: Callable[[], T]) -> T:
        """Call `action` in every process. Raises in all of them where it raised in any, the same sentence."""
        if self.size == 1:
            return action()
        raised: Exception | None = None
        result: T | None = None
        try:
            result = action()
        except Exception as error:
            raised = error
        told: list[tuple[str, str] | None] = [None] * self.size
        mine = None if raised is None else (_kind(raised), str(raised))
        dist.all_gather_object(told, mine, group=self._control)
        if raised is not None:
            raise shared(raised)
        for other in told:
            if other is not None:
                kinds = {kind.__name__: kind for kind in SHARED_ERRORS}
                raise shared(kinds.get(other[0], RuntimeError)(other[1]))
        return result  # type: ignore[return-value]

    def on_first(self, action: Callable[[], T]) -> T:
        """Call `action` in the first process; all wait, and get its result or its error."""
        if self.size == 1:
            return action()
        box = [self.together(action if self.first else lambda: None)]
        dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        """Every process's `value` (anything that can be pickled), by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._control)
        return values

    def sum(self, figures: Sequence[float]) -> list[float]:
        """The sums over all processes, in float64: always of the same bits for the same figures."""
        if self.size == 1:
            return list(figures)
        summed = torch.tensor(figures, dtype=torch.float64)
        dist.all_reduce(summed, group=self._control)
        return summed.tolist()


def launched_processes() -> int:
    """How many processes the launcher says that it started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_rank() -> int:
    """Which of them this one is, from 0; 0 where there is one, whatever RANK says (some systems set it for all)."""
    return int(os.environ.get("RANK", "0")) if launched_processes() > 1 else 0


def is_first_process() -> bool:
    """Whether this is the one process, or the first of those that a launcher started."""
    return launched_rank() == 0


def shared(error: E) -> E:
    """The error, marked as one that all processes raise: the first tells of it."""
    error.__dict__["echo_ska_shared"] = True
    return error


def is_shared(error: BaseException) -> bool:
    """Whether all processes raise this error."""
    return "echo_ska_shared" in error.__dict__


@contextlib.contextmanager
def before_joining() -> Iterator[None]:
    """Around what processes do before they are joined.

    Those of one machine read the same options and files and meet the same errors. The first of them tells, at which the
    launcher ends the others; they wait for that, and tell where it does not come.
    """
    try:
        yield
    except (ValueError, OSError):
        if launched_processes() > 1 and int(os.environ.get("LOCAL_RANK", "0")) > 0:
            time.sleep(FIRST_TELLS)
        raise


@contextlib.contextmanager
def start_processes(device: torch.device, scale: ScaleConfig, plugin: Any = None) -> Iterator[tuple[Any, Processes]]:
    """Accelerate's view of this training and its processes.

    Args:
        device: where this process computes.
        scale: see `ScaleConfig`.
        plugin: Accelerate's `DeepSpeedPlugin`, for that strategy.

    Raises:
        ValueError: the strategy does not fit the number of processes, or Accelerate is configured for another.
    """
    _refuse_other_strategies(scale)
    with environment_unread():
        yield from _started(device, scale, plugin)


def _started(device: torch.device, scale: ScaleConfig, plugin: Any) -> Iterator[tuple[Any, Processes]]:
    if launched_processes() == 1:
        if scale.strategy in ("fsdp", "deepspeed", "context"):
            what = "every sequence" if scale.strategy == "context" else "a model"
            raise ValueError(
                f"strategy {scale.strategy} shares {what} among processes and there is one: start several, as in "
                "torchrun --nproc-per-node 2 -m echo_ska train ..., or give --strategy auto."
            )
        yield _accelerator(), Processes()
        return
    if plugin is not None:
        AcceleratorState._reset_state()  # it takes one plugin in its life, and a process may train several times
    _join_anew(device)
    # Without buckets rebuilt after the first step, gradients are summed in one order before and after a resumption;
    # and a parameter that a batch does not reach is no error.
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)]
    accelerator = _accelerator(
        cpu=device.type == "cpu" and plugin is None, deepspeed_plugin=plugin, kwargs_handlers=handlers
    )
    control = dist.new_group(backend="gloo", timeout=PATIENCE)
    try:
        dist.barrier(group=control)  # PyTorch has none: a process could use and leave a group that others still join
        yield accelerator, Processes(launched_rank(), launched_processes(), control)
    finally:
        dist.destroy_process_group(control)


def _refuse_other_strategies(scale: ScaleConfig) -> None:
    """Raise ValueError where Accelerate's environment, or its configuration by that, asks for another strategy."""
    for asked in OTHER_STRATEGIES:
        variable = f"{ACCELERATES}USE_{asked}"
        if os.environ.get(variable, "").lower() != "true" or asked.lower() == scale.strategy == "deepspeed":
            continue
        known = asked.lower() in ("fsdp", "deepspeed")
        raise shared(
            ValueError(
                f"Accelerate is configured for {asked} ({variable} is true), and here the strategy alone says how a "
                f"model is trained: unset {variable}, or start with torchrun or accelerate launch --num_processes N "
                f"without a configuration, and give {f'--strategy {asked.lower()}' if known else 'a --strategy'}."
            )
        )


@contextlib.contextmanager
def environment_unread() -> Iterator[None]:
    """While it lasts, no variable of Accelerate's is set: what is computed is what `TrainingConfig` and `ScaleConfig`
    say. Afterwards those of before are, and none that Accelerate has set itself."""
    before = _accelerates_variables()
    for name in before:
        del os.environ[name]
    try:
        yield
    finally:
        for name in _accelerates_variables():
            del os.environ[name]
        os.environ.update(before)


def _accelerates_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(ACCELERATES)}


def _accelerator(**settings: Any) -> Accelerator:
    """Accelerate, told all that it would take from a configuration otherwise."""
    return Accelerator(
        mixed_precision="no",
        device_placement=False,  # its device is one for the whole process, ours is one for each call
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
        **settings,
    )


def _join_anew(device: torch.device) -> None:
    """Form the process group of workers that torchrun has started again, on one machine.

    torchrun hands them the store of the workers before, in which their addresses still stand: without keys of their
    own some wait for processes that are dead (PyTorch 2.13 with gloo: 5 runs of 14). Machines count their
    restarts apart, so that several are left to PyTorch.
    """
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    if restarts == 0 or os.environ.get("GROUP_WORLD_SIZE") != "1" or dist.is_initialized():
        return
    store, rank, size = next(dist.rendezvous("env://", timeout=PATIENCE))
    dist.init_process_group(
        "gloo" if device.type == "cpu" else "nccl",
        store=dist.PrefixStore(f"restart-{restarts}", store),
        rank=rank,
        world_size=size,
        timeout=PATIENCE,
    )


def _kind(error: Exception) -> str:
    """The name of the shared kind that an error is of; its own where it is of none."""
    return next((kind.__name__ for kind in SHARED_ERRORS if isinstance(error, kind)), type(error).__name__)
