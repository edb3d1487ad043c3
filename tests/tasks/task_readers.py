"""Slow readers in plain Python: the labels of a sequence from its tokens alone. task_table.py says whose they are."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

from echo_ska.tasks import (
    IGNORED,
    CommonWord,
    FrequentWords,
    FuzzyRecall,
    InverseMatching,
    KeySwitch,
    MultiHop,
    MultiQueryRecall,
    OrbitRecall,
    RecallMixture,
    ResourceEconomy,
    SelectiveCopy,
    SystemPrompt,
    ToolTrace,
    VariableTracking,
)

SYSTEM, USER, TRACE, ASK, FOLLOW, REPEAT, ADD = range(7)  # markers by their place after the fillers, as documented


def kind(task: Any, token: int) -> str:
    """What a token of the shared alphabet is: key, value, filler or a marker's name."""
    if token >= task.vocab_size - 8:
        return ("sys", "usr", "tr", "ask", "flw", "rep", "add", "free")[token - task.vocab_size + 8]
    if token >= task.num_keys + task.num_values:
        return "filler"
    return "value" if token >= task.num_keys else "key"


def answers(tokens: list[int], found: dict[int, int]) -> list[int]:
    return [found.get(position, IGNORED) for position in range(len(tokens))]


def copied_in_order(task: SelectiveCopy, tokens: list[int], _: list[int]) -> list[int]:
    """Every value before the first marker, one after the other from the token after it."""
    marker = tokens.index(task.vocab_size - 8 + REPEAT)
    values = [token for token in tokens[:marker] if kind(task, token) == "value"]
    return answers(tokens, {marker + 1 + place: value for place, value in enumerate(values)})


def by_the_whole_key(task: FuzzyRecall, tokens: list[int], _: list[int]) -> list[int]:
    """A key is `key_tokens` symbols; it is stored the first time and asked for the second."""
    memory: dict[tuple[int, ...], list[int]] = {}
    found: dict[int, int] = {}
    position = 0
    while position < len(tokens):
        if tokens[position] >= task.num_keys:
            position += 1
            continue
        assert all(token < task.symbols for token in tokens[position : position + task.key_tokens])
        key = tuple(tokens[position : position + task.key_tokens])
        position += task.key_tokens
        if key in memory:
            found |= dict(enumerate(memory[key], start=position))
        else:
            memory[key] = tokens[position : position + task.value_tokens]
        position += task.value_tokens
    return answers(tokens, found)


def latest_value(task: KeySwitch, tokens: list[int], _: list[int]) -> list[int]:
    """The last time that a key comes it is asked for; before, each of its values replaces the one before."""
    places: dict[int, list[int]] = {}
    for position, token in enumerate(tokens):
        if token < task.num_keys:
            places.setdefault(token, []).append(position)
    assert sorted(len(all_of) for all_of in places.values()) == sorted(
        [2] * (task.pairs - task.switched) + [2 + task.rebinds] * task.switched
    )
    for *stored, _asked in places.values():
        *old, latest = (tokens[position + 1] for position in stored)
        assert latest not in old
    return answers(tokens, {asked + 1: tokens[stored[-1] + 1] for *stored, asked in places.values()})


def run_the_program(task: VariableTracking, tokens: list[int], _: list[int]) -> list[int]:
    """Assignments are carried out as they come; only what is already set can be assigned on."""
    holds: dict[int, int] = {}
    names: list[int] = []
    found: dict[int, int] = {}
    position = 0
    while position < len(tokens):
        if kind(task, tokens[position]) == "flw":
            found[position + 2] = holds[tokens[position + 1]]
            position += 2
        elif tokens[position] < task.num_keys:
            to, source = tokens[position : position + 2]
            assert to not in holds
            holds[to] = holds[source] if source < task.num_keys else source
            names.append(to)
            position += 1
        position += 1
    assert len(names) == task.chains * task.variables
    return answers(tokens, found)


def ranked_by_count(task: FrequentWords, tokens: list[int], _: list[int]) -> list[int]:
    first_question = min(position for position, token in enumerate(tokens) if kind(task, token) == "value")
    counts = Counter(token for token in tokens[:first_question] if token < task.num_keys).most_common()
    assert [times - later for (_, times), (_, later) in pairwise(counts)] == [task.step] * (task.words - 1)
    assert counts[-1][1] == task.least
    ranks = {token - task.num_keys: position for position, token in enumerate(tokens) if kind(task, token) == "value"}
    return answers(tokens, {position + 1: counts[rank][0] for rank, position in ranks.items()})


def keep_the_books(task: ResourceEconomy, tokens: list[int], _: list[int]) -> list[int]:
    """Line by line: what stands before the agent says whether the amount is set or added; the last ones are asked."""
    owns: dict[tuple[int, int], int] = {}
    found: dict[int, int] = {}
    first_question = len(tokens) - 3 * task.accounts
    for position, token in enumerate(tokens):
        if token >= task.num_keys // 2:
            continue
        account, amount = (token, tokens[position + 1]), tokens[position + 2] - task.num_keys
        if position >= first_question:
            found[position + 2] = task.num_keys + owns[account]
        elif kind(task, tokens[position - 1]) == "add":
            assert 1 <= amount <= task.most_added
            owns[account] = (owns[account] + amount) % task.num_values
        else:
            owns[account] = amount
    assert len(owns) == task.accounts
    return answers(tokens, found)


def facts_then_questions(task: SystemPrompt, tokens: list[int], _: list[int]) -> list[int]:
    """Between the two markers every second token is a key; after them a key that is a fact's is asked for."""
    end = 2 * task.facts + 1
    memory = dict(zip(tokens[1:end:2], tokens[2 : end + 1 : 2], strict=True))
    cues = [place for place in range(end, len(tokens)) if tokens[place] in memory]
    return answers(tokens, {cue + 1: memory[tokens[cue]] for cue in cues})


def second_time_is_a_question(task: Any, tokens: list[int], _: list[int]) -> list[int]:
    """A key that comes for the first time is stored with the token after it; the second time it is asked for."""
    memory: dict[int, int] = {}
    found: dict[int, int] = {}
    for position, token in enumerate(tokens):
        if token < task.num_keys:
            if token in memory:
                found[position + 1] = memory[token]
            memory.setdefault(token, tokens[position + 1])
    return answers(tokens, found)


def zoologys(task: MultiQueryRecall, tokens: list[int], positions: list[int]) -> list[int]:
    """Noise may look like a question, so where questions stand is the task's word; what answers them is not."""
    memory = dict(zip(tokens[0 : 2 * task.pairs : 2], tokens[1 : 2 * task.pairs : 2], strict=True))
    return answers(tokens, {position: memory[tokens[position - 1]] for position in positions})


def latest_result(task: ToolTrace, tokens: list[int], _: list[int]) -> list[int]:
    asking = task.vocab_size - 8 + ASK
    memory: dict[tuple[int, int], int] = {}
    found: dict[int, int] = {}
    asked = False
    for position, token in enumerate(tokens):
        asked = asked or token == asking
        if token < task.num_keys // 2:
            call = (token, tokens[position + 1])
            if asked:
                found[position + 2] = memory[call]
            else:
                memory[call] = tokens[position + 2]
    return answers(tokens, found)


def end_of_chain(task: MultiHop, tokens: list[int], _: list[int]) -> list[int]:
    width = task.hops + 1 if task.written else 3
    first = len(tokens) - task.questions * width
    follows: dict[int, int] = {}
    position = 0
    while position < first:
        if tokens[position] < task.num_keys:
            follows[tokens[position]] = tokens[position + 1]
            position += 1
        position += 1
    found: dict[int, int] = {}
    for start in range(first, len(tokens), width):
        if task.written:
            for position in range(start + 1, start + width):
                found[position] = follows[tokens[position - 1]]
        else:
            assert tokens[start] == task.vocab_size - 8 + FOLLOW
            end = tokens[start + 1]
            while end < task.num_keys:
                end = follows[end]
            found[start + 2] = end
    return answers(tokens, found)


def most_common(task: CommonWord, tokens: list[int], _: list[int]) -> list[int]:
    places: dict[int, list[int]] = {}
    for position, token in enumerate(tokens):
        if token < task.num_keys:
            places.setdefault(token, []).append(position)
    found: dict[int, int] = {}
    for *stored, asked in places.values():
        (value, times), (_, second), *_ = Counter(tokens[position + 1] for position in stored).most_common()
        assert times - second == task.margin
        found[asked + 1] = value
    return answers(tokens, found)


def what_stood_before(task: InverseMatching, tokens: list[int], _: list[int]) -> list[int]:
    *stored, asked = [position for position, token in enumerate(tokens) if token < task.num_keys]
    before = {tokens[position]: tokens[position - 1] for position in stored}
    return answers(tokens, {asked + 1: before[tokens[asked]]})


def along_the_walk(task: OrbitRecall, tokens: list[int], _: list[int]) -> list[int]:
    asked = task.walk + task.gap
    follows = dict(pairwise(tokens[: task.walk]))
    found: dict[int, int] = {}
    for position in range(asked, len(tokens), 2):
        state = tokens[position]
        for _ in range(task.steps):
            state = follows[state]
        found[position + 1] = state
    return answers(tokens, found)


def by_its_opening(task: RecallMixture, tokens: list[int], positions: list[int]) -> list[int]:
    """The tasks of the default mixture open with a marker of their own."""
    parts = {type(part): part for part, _ in task.parts}
    part = parts[SystemPrompt if kind(parts[SystemPrompt], tokens[0]) == "sys" else ToolTrace]
    derive = facts_then_questions if isinstance(part, SystemPrompt) else latest_result
    return derive(part, tokens, positions)
