"""What processes of a line compute for the tests: each holds itself to one process and says how far it is off.

They are started once for all tests. Every case is called in the processes of a group and returns plain numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from echo_ska.models import EchoCache, EchoConfig, EchoForCausalLM
from echo_ska.parallel import ContextParallel, Traffic, packed_bounds, part_bounds, read_context_parallel

WORLDS = (2, 3, 4)
VOCABULARY = 40


def model(dtype: torch.dtype = torch.float64, **changes: Any) -> EchoForCausalLM:
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "ska_layers": [1, 2],
        "num_heads": 2,
        "rank": 8,
        "state_size": 8,
        "intermediate_size": 48,
    }
    torch.manual_seed(3)
    return EchoForCausalLM(EchoConfig(**(settings | changes))).to(dtype)


def tokens(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


def mean_loss(logits: Tensor, shift_labels: Tensor, scored: int) -> Tensor:
    """In the model's own dtype: Hugging Face's is float32."""
    return F.cross_entropy(logits.flatten(0, 1), shift_labels.flatten(), reduction="sum") / scored


def off(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, against the largest number that is wanted."""
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30)) if wanted.numel() else 0.0


def compared(
    group: dist.ProcessGroup,
    whole: EchoForCausalLM,
    parts: EchoForCausalLM,
    batch: dict[str, Tensor],
    bounds: list[int] | None = None,
) -> dict[str, float]:
    """One forward and backward pass by one process, and by all of them: how far logits and gradients are apart."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    labels = F.pad(batch["labels"], (0, 1), value=-100)[:, 1:]
    scored = int((labels != -100).sum())
    packing = {"cu_seqlens": batch["cu_seqlens"]} if "cu_seqlens" in batch else {}
    torch.manual_seed(7)  # for what is dropped in training, as the training loop seeds every process
    wanted = whole(input_ids=batch["input_ids"], **packing)
    wanted_loss = mean_loss(wanted.logits, labels, scored)
    wanted_loss.backward()
    with ContextParallel(parts, group) as parallel:
        if bounds is None:
            bounds = part_bounds(labels.shape[1], world, parallel.multiple_of)
        part = parallel.split(batch, bounds)
        torch.manual_seed(7)
        found = parallel(part["input_ids"], cu_seqlens=part.get("cu_seqlens"))
        loss = mean_loss(found.logits, part["shift_labels"], scored)
        loss.backward()
        parallel.reduce_gradients()
    dist.all_reduce(loss.detach_(), group=group)
    own = slice(bounds[rank], bounds[rank + 1])
    gradients = [
        off(mine.grad, its.grad)
        for mine, its in zip(parts.parameters(), whole.parameters(), strict=True)
        if mine.grad is not None and its.grad is not None
    ]
    assert len(gradients) == len(list(whole.parameters()))
    return {
        "logits": off(found.logits.detach(), wanted.logits.detach()[:, own]),
        "loss": abs(float(loss) - float(wanted_loss.detach())),
        "gradients": max(gradients),
    }


def labelled(rows: int, length: int, **more: Tensor) -> dict[str, Tensor]:
    ids = tokens(rows, length)
    labels = ids.clone()
    labels[:, ::5] = -100
    return {"input_ids": ids, "labels": labels, **more}


def equal_parts(group: dist.ProcessGroup) -> dict[str, float]:
    return compared(group, model(), model(), labelled(2, 96))


def unequal_parts(group: dist.ProcessGroup) -> dict[str, float]:
    bounds = [*[0, 3, 50, 54][: dist.get_world_size(group)], 97]
    return compared(group, model(), model(), labelled(2, 97), bounds)


def single_precision(group: dist.ProcessGroup) -> dict[str, float]:
    """Also how far one float32 process, and all of them, are from one of float64."""
    whole, parts, fine, batch = model(torch.float32), model(torch.float32), model(), labelled(2, 200)
    found = compared(group, whole, parts, batch)
    labels = F.pad(batch["labels"], (0, 1), value=-100)[:, 1:]
    mean_loss(fine(input_ids=batch["input_ids"]).logits, labels, int((labels != -100).sum())).backward()
    for name, rounded in (("one", whole), ("parts", parts)):
        found[f"rounding of {name}"] = max(
            off(mine.grad.double(), its.grad)
            for mine, its in zip(rounded.parameters(), fine.parameters(), strict=True)
            if mine.grad is not None and its.grad is not None
        )
    return found


def chunk_causal(group: dist.ProcessGroup) -> dict[str, float]:
    changes = {"refresh_interval": 8}
    return compared(group, model(**changes), model(**changes), labelled(2, 110))


def plain_power(group: dist.ProcessGroup) -> dict[str, float]:
    changes = {"power": 0, "ska_layers": [0, 3], "ska_at_ends": True}
    return compared(group, model(**changes), model(**changes), labelled(1, 61))


def packed_sequences(group: dist.ProcessGroup) -> dict[str, float]:
    """One sequence over several cuts, one that begins at a cut, one shorter than a kernel before a cut."""
    world = dist.get_world_size(group)
    bounds = [*[0, 40, 70, 80][:world], 120]
    packing = torch.tensor([0, 5, 38, 70, 90, 92, 120])
    return compared(group, model(), model(), labelled(1, 120, cu_seqlens=packing), bounds)


def packed_chunk_causal(group: dist.ProcessGroup) -> dict[str, float]:
    world = dist.get_world_size(group)
    bounds = [*[0, 13, 29, 45][:world], 70]
    packing = torch.tensor([0, 5, 29, 60, 70])  # cuts at 8 of the second, between second and third, at 16 of the third
    changes = {"refresh_interval": 8}
    return compared(group, model(**changes), model(**changes), labelled(1, 70, cu_seqlens=packing), bounds)


def packed_chunk_causal_as_split(group: dist.ProcessGroup) -> dict[str, float]:
    """Cuts of equal parts are at no multiple of the interval in any sequence: `split` moves them."""
    packing = [0, 5, 29, 60, 70]
    changes = {"refresh_interval": 8}
    bounds = packed_bounds(packing, dist.get_world_size(group), 8, least=3)
    batch = labelled(1, 70, cu_seqlens=torch.tensor(packing))
    with ContextParallel(model(**changes), group) as parallel:
        part = parallel.split(batch)
        assert part["input_ids"].shape[1] == bounds[parallel.line.rank + 1] - bounds[parallel.line.rank]
        parallel(**part)
    return compared(group, model(**changes), model(**changes), batch, bounds)


def packed_between_sequences(group: dist.ProcessGroup) -> dict[str, float]:
    """Every part begins where a sequence begins, and the one before it ended inside an interval."""
    packing = [0, 9, 18, 27, 36]
    changes = {"refresh_interval": 8}
    bounds = packed_bounds(packing, dist.get_world_size(group), 8, least=3)
    assert set(bounds) <= set(packing)
    batch = labelled(1, 36, cu_seqlens=torch.tensor(packing))
    return compared(group, model(**changes), model(**changes), batch, bounds)


def dropout(group: dist.ProcessGroup) -> dict[str, float]:
    """Heads that store all and rows that go past a mixer are the same in every part, and they change the logits."""
    changes = {"gate_dropout": 0.5, "mixer_dropout": [0.5, 0.5, 0.0, 0.0]}
    batch = labelled(3, 90)
    without, dropped = (m(input_ids=batch["input_ids"]).logits.detach() for m in (model(), model(**changes)))
    return {"dropped": off(dropped, without), **compared(group, model(**changes), model(**changes), batch)}


def recomputed(group: dist.ProcessGroup) -> dict[str, float]:
    """Gradient checkpointing: layers exchange again while the backward pass runs."""
    parts = model().train()
    parts.gradient_checkpointing_enable()
    return compared(group, model(), parts, labelled(2, 80))


def trained(group: dist.ProcessGroup) -> dict[str, Any]:
    """Ten steps of AdamW in float32: both loss curves, and how far the weights are apart after them."""
    whole, parts = model(torch.float32), model(torch.float32)
    curves: dict[str, list[float]] = {"one": [], "parts": []}
    optimizers = [torch.optim.AdamW(m.parameters(), lr=3e-3, foreach=False) for m in (whole, parts)]
    with ContextParallel(parts, group) as parallel:
        for step in range(10):
            batch = {"input_ids": tokens(2, 64, seed=step), "labels": tokens(2, 64, seed=step)}
            one = whole(**batch).loss
            one.backward()
            loss = parallel(**parallel.split(batch)).loss
            loss.backward()
            parallel.reduce_gradients()
            curves["one"].append(float(one.detach()))
            curves["parts"].append(float(loss.detach()))
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    pairs = zip(parts.parameters(), whole.parameters(), strict=True)
    return {**curves, "weights": max(off(mine.detach(), its.detach()) for mine, its in pairs)}


def read(group: dist.ProcessGroup) -> dict[str, float]:
    """Reading by all, in several rounds and with tokens left over, against one process; then one token more."""
    whole, parts, results = model().eval(), model().eval(), {}
    for name, length, segment in (("long", 203, 16), ("short", 5, 4096), ("one", 1, 4096)):
        ids = tokens(2, length)
        wanted, found = whole.prefill(ids), read_context_parallel(parts, ids, group=group, segment_length=segment)
        results[name] = off(found.logits, wanted.logits)
        results[f"{name} states"] = states_off(found.past_key_values, wanted.past_key_values)
        one = tokens(2, 1, seed=9)
        following = [m(input_ids=one, past_key_values=o.past_key_values) for m, o in ((parts, found), (whole, wanted))]
        results[f"{name}, one more"] = off(following[0].logits, following[1].logits)
        assert found.past_key_values.get_seq_length() == length + 1
    return results


def read_on(group: dist.ProcessGroup) -> dict[str, float]:
    """From a cache that stands inside a refresh interval, by models that drop at random where they are trained."""
    changes = {"refresh_interval": 8, "gate_dropout": 0.5, "mixer_dropout": [0.5, 0.5, 0.0, 0.0]}
    whole, parts = (model(**changes).train() for _ in range(2))
    first, second = tokens(1, 13), tokens(1, 150, seed=1)
    cache = parts.prefill(first).past_key_values
    found = read_context_parallel(parts, second, cache, group=group, segment_length=20)
    wanted = whole.prefill(torch.cat([first, second], dim=1))
    assert all(module.training for module in parts.modules())
    return {
        "logits": off(found.logits, wanted.logits),
        "states": states_off(found.past_key_values, wanted.past_key_values),
    }


def states_off(found: EchoCache, wanted: EchoCache) -> float:
    differences = []
    for mine, its in zip(found.layers, wanted.layers, strict=True):
        assert mine.state is not None
        assert its.state is not None
        assert mine.tokens == its.tokens
        pairs = zip(mine.state.compact().tensors().values(), its.state.compact().tensors().values(), strict=True)
        differences += [off(a.double(), b.double()) for a, b in pairs]
    return max(differences)


def volume(group: dist.ProcessGroup) -> dict[str, Any]:
    """Bytes and messages by layer at two lengths, of a forward and a backward pass and of reading."""
    parts, found = model(torch.float32), {}
    with ContextParallel(parts, group) as parallel:
        for length in (256, 1024):
            parallel.traffic.reset()
            parallel(**parallel.split(labelled(1, length))).loss.backward()
            parts.zero_grad()
            found[length] = {phase: parallel.traffic.layers(phase) for phase in ("forward", "backward")}
    traffic = Traffic()
    read_context_parallel(parts, tokens(1, 256), group=group, traffic=traffic)
    return {
        "lengths": found,
        "read": traffic.layers("forward"),
        "broadcast": traffic.bytes["state", "collective"],
        "states": parts.state_bytes(256),
    }


def refused(group: dist.ProcessGroup) -> dict[str, str]:
    """The sentence of every refusal, each raised in every process."""
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    found: dict[str, str] = {}

    def attempt(name: str, function: Callable[[], Any]) -> None:
        try:
            function()
        except ValueError as error:
            found[name] = str(error)

    attempt("attention", lambda: ContextParallel(model(ska_layers=[], attention_layers=[1]), group))
    attempt("weights", lambda: ContextParallel(model() if rank else model().float().double().half(), group))
    whole = model()
    with ContextParallel(whole, group) as parallel:
        attempt("twice", lambda: ContextParallel(whole, group))
        attempt("rows", lambda: parallel(tokens(1 + (rank == 0), 8)))
        attempt("short", lambda: parallel(tokens(1, 8 if rank else 2)))
        packing = torch.tensor([0, 8])
        attempt("some packed", lambda: parallel(tokens(1, 8), cu_seqlens=packing if rank else None))
        attempt("some labelled", lambda: parallel(tokens(1, 8), tokens(1, 8) if rank else None))
        trailing = torch.tensor([0, 8] if rank else [0, 8, 8])
        attempt("trailing", lambda: parallel(tokens(1, 8), cu_seqlens=trailing))
        mask = torch.tensor([[0] + [1] * 7])
        attempt("padding", lambda: whole(input_ids=tokens(1, 8), attention_mask=mask))
    with ContextParallel(model(refresh_interval=8), group) as parallel:
        attempt("interval", lambda: parallel(tokens(1, 12)))
    recording = EchoCache(whole.config)
    recording.activate_past_recording()
    attempt("recorded", lambda: read_context_parallel(whole, tokens(1, 64), recording, group=group))
    attempt("no token", lambda: read_context_parallel(whole, tokens(1, 0), group=group))
    whole(input_ids=tokens(1, 8))  # closed: it reads by itself again
    assert world > 1
    return found


CASES: dict[str, Callable[[dist.ProcessGroup], dict[str, Any]]] = {
    case.__name__: case
    for case in (
        equal_parts,
        unequal_parts,
        single_precision,
        chunk_causal,
        plain_power,
        packed_sequences,
        packed_chunk_causal,
        packed_chunk_causal_as_split,
        packed_between_sequences,
        dropout,
        recomputed,
        trained,
        read,
        read_on,
        volume,
        refused,
    )
}


def run_all() -> dict[str, dict[int, Any]]:
    """Every case in groups of the first 2, 3 and 4 processes: by case and world, what this process found."""
    groups = {world: dist.new_group(list(range(world))) for world in WORLDS}
    found: dict[str, dict[int, Any]] = {name: {} for name in CASES}
    for (name, case), world in itertools.product(CASES.items(), WORLDS):
        if dist.get_rank() < world and (case is not trained or world == WORLDS[0]):  # it takes as long as all others
            found[name][world] = case(groups[world])
    return found


def returning(count: int) -> Tensor:
    """A tensor of its process's number."""
    return torch.full((count,), float(dist.get_rank()))


def failing(number: int) -> None:
    raise ArithmeticError(f"a process fails on purpose, with {number}")
