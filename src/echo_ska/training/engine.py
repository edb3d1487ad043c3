"""Who holds the weights while they are trained: every process all of them, or each a shard."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from echo_ska.training.checkpoint import Checkpoint, model_tensors, restore, save_checkpoint, save_shards
from echo_ska.training.config import TrainingConfig
from echo_ska.training.device import half_precision
from echo_ska.training.optimizer import build_optimizer
from echo_ska.training.processes import Processes, shared
from echo_ska.training.scale import SKIP_LOGITS_AT, SKIP_LOGITS_FROM, ScaleConfig
from echo_ska.training.stored import Piece, Stored


class Engine:
    """One process, or several that share batches alone (DDP): each holds all weights and moments.

    Args:
        model: trained in place.
        config, scale: settings.
        accelerator: Accelerate's view of this process.
        device: where it computes.
        processes: who trains together.
        checkpoint: what to go on from; None starts.

    Attributes:
        network: what is called for a loss; the model, or a wrapper around it.
        optimizer: AdamW over the parameters that are trained.
        reads_alone: whether no process waits for another in a forward pass.
    """

    reads_alone = True

    network: nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        model: nn.Module,
        config: TrainingConfig,
        scale: ScaleConfig,
        accelerator: Any,
        device: torch.device,
        processes: Processes,
        checkpoint: Checkpoint | None,
    ) -> None:
        self.model, self.config, self.scale = model, config, scale
        self.accelerator, self.device, self.processes = accelerator, device, processes
        require_named_outputs(model)
        skips_logits_up_to(model, scale)  # refuses what cannot be had
        self.prepare(checkpoint)

    def prepare(self, checkpoint: Checkpoint | None) -> None:
        """Set `network` and `optimizer`, with the checkpoint's weights and moments."""
        self.model.to(self.device)
        self.optimizer = self.build_optimizer()
        if checkpoint is not None:
            self.processes.together(lambda: restore(checkpoint, self.model, self.optimizer))
        network = torch.compile(self.model) if self.scale.compile else self.model
        self.network = self.accelerator.prepare(network)

    def build_optimizer(self, stand_ins: dict[str, nn.Parameter] | None = None) -> torch.optim.AdamW:
        """AdamW as `TrainingConfig` has it; see `optimizer.build_optimizer`."""
        config = self.config
        return build_optimizer(self.model, config.learning_rate, config.weight_decay, config.betas, stand_ins)

    def piece(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around the forward and backward pass of a piece of the batch: gradients are summed over processes at the
        last."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.network)

    def own(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """What this process reads of a piece: all of it."""
        return batch

    def forward(self, batch: dict[str, Tensor], scored: float) -> Any:
        """The model's output for `own` of a piece, of whose tokens that share is scored; without logits where
        `ScaleConfig.skip_logits` says so."""
        skips = scored <= skips_logits_up_to(self.model, self.scale)
        return self.call(**batch, skip_logits=True) if skips else self.call(**batch)

    def call(self, **arguments: Any) -> Any:
        """The model's output."""
        return self.network(**arguments)

    def backward(self, loss: Tensor) -> None:
        """Add a piece's gradients; processes that share a batch hold the mean over them after the last."""
        self.accelerator.backward(loss)

    def clip_gradients(self) -> Tensor:
        """Clip the gradients, and return the norm that all of them together had."""
        return self.accelerator.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip or math.inf)

    def step(self) -> None:
        """Change the weights, and forget the gradients."""
        # Not by Accelerate's wrapper, which does nothing while another of the process's trainings is between its steps.
        self.optimizer.step()
        self.discard()

    def discard(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    @contextlib.contextmanager
    def whole_model(self) -> Iterator[nn.Module]:
        """The model with the weights of now, for the first process to call; all processes enter."""
        yield self.model

    def finish(self) -> None:
        """Bring the caller's model up to date, on `device`, in all processes."""

    def close(self) -> None:
        """Leave nothing behind in the caller's model, however the training ended."""

    def save(self, directory: Path, step: int, configuration: dict[str, Any], state: dict[str, Any]) -> None:
        """Write a checkpoint; all processes call it. Raises OSError in all of them if it cannot be written."""
        keep = self.config.keep_checkpoints
        self.processes.on_first(
            lambda: save_checkpoint(directory, step, self.model, self.optimizer, configuration, state, keep)
        )


class ShardedEngine(Engine):
    """FSDP2: every process holds the rows of each tensor that fall to it, and gathers a block when it is called.

    The caller's model stays whole, on the CPU, as it was given; a copy of it is sharded and trained. Parameters are
    float32 in the shards and when gathered, so those that must not be rounded to bfloat16 never are.
    """

    reads_alone = False

    def prepare(self, checkpoint: Checkpoint | None) -> None:
        """See `Engine`."""
        self.model.to("cpu").train()
        stored = None
        if checkpoint is not None:
            stored = self.processes.together(lambda: restore(checkpoint, self.model))
        mesh = init_device_mesh(self.device.type, (self.processes.size,))
        self.network = copy.deepcopy(self.model)
        kinds = getattr(self.model, "_no_split_modules", None) or ()  # Hugging Face's name for blocks
        blocks = [module for module in self.network.modules() if type(module).__name__ in kinds]
        require_uniform_dtypes([*blocks, self.network])
        for module in [*blocks, self.network]:
            if self.scale.compile and (module is not self.network or not blocks):
                module.compile()
            fully_shard(module, mesh=mesh)
        self.network.to(self.device)  # buffers
        self._names = {id(parameter): name for name, parameter in self.network.named_parameters()}
        parameters = dict(self.network.named_parameters())
        self.optimizer = self.build_optimizer(parameters)
        for key, moment in ({} if stored is None else stored.optimizer).items():
            name, _, slot = key.rpartition("/")
            self.optimizer.state[parameters[name]][slot] = _sharded(moment, parameters[name])

    def piece(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients are summed and sharded at every piece: whole ones would not fit where weights do not."""
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        """See `Engine`."""
        loss.backward()

    def clip_gradients(self) -> Tensor:
        """See `Engine`."""
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.config.gradient_clip or math.inf)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def step(self) -> None:
        """See `Engine`."""
        self.optimizer.step()
        self.discard()

    @contextlib.contextmanager
    def whole_model(self) -> Iterator[nn.Module]:
        """See `Engine`: the caller's model, which the first process has on its device meanwhile."""
        self._gather()
        yield self.model.to(self.device if self.processes.first else "cpu")
        self.model.to("cpu")

    def finish(self) -> None:
        """See `Engine`."""
        self._gather()
        self.model.to(self.device)

    def save(self, directory: Path, step: int, configuration: dict[str, Any], state: dict[str, Any]) -> None:
        """See `Engine`; every process writes its shard."""
        keep = self.config.keep_checkpoints
        save_shards(directory, step, self._pieces(), configuration, state, keep, self.processes)

    @torch.no_grad()
    def _gather(self) -> None:
        sharded = self.network.state_dict(keep_vars=True)
        for name, target in model_tensors(self.model).items():
            tensor = sharded[name]
            target.copy_(tensor.full_tensor() if isinstance(tensor, DTensor) else tensor)

    def _pieces(self) -> list[Piece]:
        sharded = self.network.state_dict(keep_vars=True)
        held = [("model", name, sharded[name]) for name in model_tensors(self.model)]
        for parameter, slots in self.optimizer.state.items():
            held += [("optimizer", f"{self._names[id(parameter)]}/{slot}", value) for slot, value in slots.items()]
        pieces = []
        for kind, name, tensor in held:
            if isinstance(tensor, DTensor):
                local = tensor.to_local().detach().reshape(-1)
                pieces.append(Piece(kind, name, tuple(tensor.shape), _start(tensor), local))
            elif self.processes.first:  # the same in every process
                pieces.append(Piece(kind, name, tuple(tensor.shape), 0, tensor.detach().reshape(-1)))
        return pieces


def require_named_outputs(model: nn.Module) -> None:
    """Raise ValueError for a model that is configured to return tuples, in which a loss has no name."""
    if not getattr(getattr(model, "config", None), "return_dict", True):
        raise ValueError(
            "The model is configured to return tuples and a training reads its outputs by name: leave out "
            "return_dict=false."
        )


def require_precise(model: nn.Module) -> None:
    """Raise ValueError for a model with parameters to be trained in half precision, in which small changes are lost."""
    if half := half_precision(parameter for parameter in model.parameters() if parameter.requires_grad):
        name = str(half).removeprefix("torch.")
        raise ValueError(
            f"The model's parameters are in {name}, in which a training's small changes are lost: train model.float() "
            "(precision bf16 computes in bfloat16 and keeps the parameters in float32)."
        )


def require_uniform_dtypes(modules: Sequence[nn.Module]) -> None:
    """Raise ValueError where the trained parameters that FSDP gathers at once are of several dtypes.

    Args:
        modules: each is gathered without what the ones before it have gathered.
    """
    gathered: set[nn.Parameter] = set()
    for module in modules:
        own = {parameter for parameter in module.parameters() if parameter.requires_grad} - gathered
        gathered |= own
        if len(kinds := sorted({str(parameter.dtype).removeprefix("torch.") for parameter in own})) > 1:
            raise shared(
                ValueError(
                    f"strategy fsdp gathers a block at once and in one dtype, and {type(module).__name__} has "
                    f"parameters in {' and '.join(kinds)}: train it in one of them, or by ddp."
                )
            )


def skips_logits_up_to(model: Any, scale: ScaleConfig) -> float:
    """What `ScaleConfig.skip_logits` comes to for this model: the share of scored tokens up to which it goes without
    logits, 1 = always, below 0 = never.

    Raises:
        ValueError: the model is to do without logits, and cannot.
    """
    can = bool(getattr(model, "can_skip_logits", False))
    if scale.skip_logits and not can:
        raise ValueError(
            f"skip_logits: {type(model).__name__} cannot give its loss without logits, or its head is no plain linear "
            "layer: leave it out."
        )
    if not can or scale.skip_logits is False:
        return -1
    if scale.skip_logits or model.config.vocab_size >= SKIP_LOGITS_FROM:
        return 1
    return -1 if scale.compile else SKIP_LOGITS_AT  # with logits the compiler sees one graph, and no part is left out


def _start(tensor: DTensor) -> int:
    """The flat position of a shard's first number in the tensor, whose rows are divided."""
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return offset[0] * math.prod(tensor.shape[1:])


def _sharded(moment: Stored, parameter: nn.Parameter) -> Tensor:
    """A moment as its parameter is sharded; a step count whole."""
    assert isinstance(parameter, DTensor)
    if moment.shape != tuple(parameter.shape):
        return moment.whole().to(parameter.device)
    sharded = torch.zeros_like(parameter, dtype=moment.dtype, requires_grad=False)
    assert isinstance(sharded, DTensor)
    local = sharded.to_local()
    local.copy_(moment.read(_start(parameter), _start(parameter) + local.numel()).view(local.shape))
    return sharded
