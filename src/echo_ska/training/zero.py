"""DeepSpeed's ZeRO-1: every process holds all weights, and AdamW's moments of its share of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from echo_ska.training.checkpoint import Checkpoint, model_tensors, restore, save_shards
from echo_ska.training.config import TrainingConfig
from echo_ska.training.engine import Engine
from echo_ska.training.processes import environment_unread
from echo_ska.training.stored import Piece, StoredTensors


def deepspeed_plugin(config: TrainingConfig) -> Any:
    """Accelerate's plugin for `deepspeed_configuration`.

    Raises:
        ValueError: DeepSpeed is not installed.
    """
    from accelerate import DeepSpeedPlugin
    from accelerate.utils import is_deepspeed_available

    if not is_deepspeed_available():
        raise ValueError("strategy deepspeed needs DeepSpeed: pip install 'echo-ska[deepspeed]', or use fsdp.")
    with environment_unread():
        return DeepSpeedPlugin(hf_ds_config=deepspeed_configuration(config))


def deepspeed_configuration(config: TrainingConfig) -> dict[str, Any]:
    """What DeepSpeed is told: ZeRO-1 around our own AdamW, weights in float32.

    bfloat16 is the training loop's autocast, as everywhere. DeepSpeed's own `bf16` would round all parameters, those
    too that steer exponentials and solves.
    """
    return {
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": False},
        "gradient_clipping": config.gradient_clip or 0.0,  # 0 is its "never"
        # The loop divides a batch and weighs its pieces itself.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
    }


class ZeroEngine(Engine):
    """See `Engine`: here DeepSpeed sums the gradients, clips them and calls the optimiser."""

    def prepare(self, checkpoint: Checkpoint | None) -> None:
        """See `Engine`."""
        self.model.to(self.device)
        self.optimizer = self.build_optimizer()
        stored = None
        if checkpoint is not None:
            stored = self.processes.together(lambda: restore(checkpoint, self.model))
        network = torch.compile(self.model) if self.scale.compile else self.model
        self.network, _ = self.accelerator.prepare(network, self.optimizer)
        self.deepspeed: Any = self.network
        if stored is not None:
            self._restore_moments(stored)

    @contextlib.contextmanager
    def piece(self, last: bool) -> Iterator[None]:
        """See `Engine`."""
        self.deepspeed.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        """See `Engine`."""
        self.deepspeed.backward(loss)

    def clip_gradients(self) -> Tensor:
        """See `Engine`: the norm alone; DeepSpeed clips when it steps."""
        zero = self.deepspeed.optimizer
        norm = torch.as_tensor(zero.scaled_global_norm())
        # Its own sign of what is not finite, -1 for a group of parameters, is lost in some versions in the norm of all.
        return torch.full_like(norm, math.nan) if zero.has_overflow() else norm

    def step(self) -> None:
        """See `Engine`."""
        self.deepspeed.step()

    def discard(self) -> None:
        """See `Engine`."""
        self.deepspeed.optimizer.zero_grad()

    def save(self, directory: Path, step: int, configuration: dict[str, Any], state: dict[str, Any]) -> None:
        """See `Engine`; every process writes the moments that it holds, the first the weights too."""
        keep = self.config.keep_checkpoints
        save_shards(directory, step, self._pieces(), configuration, state, keep, self.processes)

    def _fragments(self) -> Iterator[tuple[str, Tensor, int, int, int, Tensor]]:
        """(name, parameter, where in it, where in the flat partition, how many, the flat partition), of this process.

        DeepSpeed joins the parameters of a group end to end and gives each process a stretch of that, which its AdamW
        takes for one parameter; `_hp_mapping` says which part of which parameter lies where.
        """
        for name, parameter in self.model.named_parameters():
            mapping = getattr(parameter, "_hp_mapping", None)
            if mapping is not None:
                partition = self.deepspeed.optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
                own, flat = mapping.lp_fragment_address, mapping.hp_fragment_address
                yield name, parameter, own.start, flat.start, flat.numel, partition

    def _pieces(self) -> list[Piece]:
        pieces = []
        if self.processes.first:
            for name, tensor in model_tensors(self.model).items():
                pieces.append(Piece("model", name, tuple(tensor.shape), 0, tensor.detach().reshape(-1)))
        for name, parameter, start, flat, count, partition in self._fragments():
            for slot, value in self.optimizer.state.get(partition, {}).items():
                if value.dim() == 0:  # the step count, of which the parameter's first process tells
                    if start == 0:
                        pieces.append(Piece("optimizer", f"{name}/{slot}", (), 0, value.detach().reshape(1)))
                else:
                    values = value.detach()[flat : flat + count]
                    pieces.append(Piece("optimizer", f"{name}/{slot}", tuple(parameter.shape), start, values))
        return pieces

    def _restore_moments(self, stored: StoredTensors) -> None:
        for name, _, start, flat, count, partition in self._fragments():
            slots = self.optimizer.state[partition]
            for key, moment in stored.optimizer.items():
                owner, _, slot = key.rpartition("/")
                if owner != name:
                    continue
                if moment.shape == ():
                    slots[slot] = moment.whole().to(partition.device)
                else:
                    whole = slots.setdefault(slot, torch.zeros_like(partition, requires_grad=False))
                    whole[flat : flat + count] = moment.read(start, start + count).to(partition.device)
