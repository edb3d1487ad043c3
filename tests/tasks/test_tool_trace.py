"""Two-token keys, and results that are overwritten. Labels, lengths and refusals: test_all_tasks.py."""

from itertools import pairwise

import torch

from echo_ska.tasks import ToolTrace

TASK = ToolTrace(agents=2, tools=3, repeats=5, questions=4, length=90, vocab_size=64, num_keys=20, num_values=4)


def calls(task: ToolTrace, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The calls of the logs and of the questions, (agent, tool, result): [B, calls, 3] and [B, questions, 3]."""
    tokens = task.sample(rows, torch.Generator().manual_seed(0)).input_ids
    starts = (tokens < task.num_keys // 2).nonzero()[:, 1].view(rows, -1)
    found = tokens.gather(1, (starts[:, :, None] + torch.arange(3)).flatten(1)).view(rows, -1, 3)
    return found[:, : -task.questions], found[:, -task.questions :]


def test_every_agent_calls_every_tool_and_a_new_result_differs_from_the_one_before() -> None:
    log, questions = calls(TASK, 200)
    overwritten = 0
    for sequence, asked in zip(log.tolist(), questions.tolist(), strict=True):
        history: dict[tuple[int, int], list[int]] = {}
        for agent, tool, result in sequence:
            history.setdefault((agent, tool), []).append(result)
        assert len(sequence) == 11
        assert len(history) == 6
        assert {agent for agent, _ in history} | {tool for _, tool in history} <= set(range(20))
        assert all(agent < 10 <= tool for agent, tool in history)
        assert all(old != new for results in history.values() for old, new in pairwise(results))
        assert len({(agent, tool) for agent, tool, _ in asked}) == 4
        overwritten += sum(history[agent, tool][0] != result for agent, tool, result in asked)
    assert overwritten / 800 > 0.3  # the first result is often no longer the answer


def test_results_of_different_pairs_are_independent_and_uniform() -> None:
    _, questions = calls(TASK, 10_000)
    results = questions[:, :, 2] - 20
    shares = results.flatten().bincount(minlength=4) / results.numel()
    assert torch.allclose(shares, torch.full((4,), 0.25), atol=0.01)
    for other in range(1, 4):
        together = (4 * results[:, 0] + results[:, other]).bincount(minlength=16) / 10_000
        assert torch.allclose(together, torch.full((16,), 1 / 16), atol=0.0125)


def test_the_last_call_of_a_pair_is_uniform_over_the_log() -> None:
    """Calls come in random order: the first and the last place of the log are equally often of the asked pair."""
    log, questions = calls(TASK, 4000)
    same = (log[:, :, None, :2] == questions[:, None, :, :2]).all(dim=-1).double().mean(dim=(0, 2))  # [calls]
    assert torch.allclose(same, torch.full((11,), 1 / 6, dtype=torch.float64), atol=0.02)


def test_markers_open_the_log_and_the_questions() -> None:
    tokens = TASK.sample(20, torch.Generator().manual_seed(0)).input_ids
    assert (tokens >= 56).sum(dim=1).unique().tolist() == [2]
    assert tokens[:, 0].unique().tolist() == [58]
    assert tokens[:, 90 - 12 - 1].unique().tolist() == [59]
