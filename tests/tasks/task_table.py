"""One row for every registered task: what to sample, how to answer it by reading, what it refuses.

A new task joins with a row; test_all_tasks.py then runs every law over it, and fails for a task that has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from task_readers import (
    along_the_walk,
    by_its_opening,
    by_the_whole_key,
    copied_in_order,
    end_of_chain,
    facts_then_questions,
    keep_the_books,
    latest_result,
    latest_value,
    most_common,
    ranked_by_count,
    run_the_program,
    second_time_is_a_question,
    what_stood_before,
    zoologys,
)

from echo_ska.tasks import (
    CommonWord,
    FrequentWords,
    FuzzyRecall,
    InverseMatching,
    KeySwitch,
    MultiHop,
    MultiQueryRecall,
    MultiQueryRecallGrid,
    Needle,
    OrbitRecall,
    RecallMixture,
    RecallTask,
    ResourceEconomy,
    SelectiveCopy,
    SystemPrompt,
    ToolTrace,
    VariableTracking,
)

Derive = Callable[[Any, list[int], list[int]], list[int]]
SMALL = {"vocab_size": 32, "num_keys": 12, "num_values": 4}  # 8 fillers, 8 markers


@dataclass(frozen=True)
class Row:
    """A task's settings and a slow reader of its sequences.

    Attributes:
        settings: tasks to sample; the default ones first.
        derive: (task, tokens, positions of answers) -> labels of one sequence, in plain Python. It finds the questions
            itself; only where noise may look like a question does it take their positions from the task.
        drawn: the tasks whose sequences the module's docstring draws, in order.
        refused: settings that cannot be met, and what the sentence says.
        windows: how many tokens before an answer the guesser without a memory is shown.
    """

    settings: tuple[RecallTask, ...]
    derive: Derive
    drawn: tuple[RecallTask, ...] = ()
    refused: tuple[tuple[dict[str, Any], str], ...] = ()
    windows: tuple[int, ...] = (1, 2, 3)


TOO_FEW_TOKENS = ({"vocab_size": 104}, "need a vocab_size of at least 105, got 104")
NOT_A_LENGTH = ({"length": 64.0}, "length must be a whole number")
DISTINCT = "since there are 64 keys"

TABLE: dict[str, Row] = {
    "mqar": Row(
        settings=(MultiQueryRecall(), MultiQueryRecall(vocab_size=12, length=16, pairs=2)),
        derive=zoologys,
        drawn=(MultiQueryRecall(vocab_size=12, length=16, pairs=2),),
        windows=(1,),  # the first question may follow the last pair at once; before others there is noise
    ),
    "mqar-grid": Row(
        settings=(
            MultiQueryRecallGrid(),
            MultiQueryRecallGrid(vocab_size=120),  # the fillers of the shared alphabet
            MultiQueryRecallGrid(pairs=3, gap=4, vocab_size=20, num_keys=8, num_values=8),
        ),
        derive=second_time_is_a_question,
        drawn=(MultiQueryRecallGrid(pairs=3, gap=4, vocab_size=20, num_keys=8, num_values=8),),
    ),
    "system-prompt": Row(
        settings=(
            SystemPrompt(),
            SystemPrompt(gaps="hard"),
            SystemPrompt(references=4),
            SystemPrompt(facts=2, references=2, questions=1),
            SystemPrompt(facts=3, questions=3, gaps="easy", length=17, **SMALL),  # nothing to spare
            SystemPrompt(facts=3, questions=2, gaps="hard", length=40, **SMALL),
        ),
        derive=facts_then_questions,
        drawn=(SystemPrompt(facts=3, questions=2, gaps="easy", length=20),),
        refused=(
            TOO_FEW_TOKENS,
            NOT_A_LENGTH,
            ({"facts": 65}, DISTINCT),
            ({"facts": 0}, "facts must be a whole number of at least 1"),
            ({"questions": 9}, "questions must be at most 8, since there are 8 facts, .*, got 9"),
            ({"references": 9}, "references must be at most 8, since there are 8 facts"),
            ({"facts": 61, "references": 4, "length": 999}, "since there are 60 keys"),
            ({"gaps": "long"}, "gaps must be easy or hard, got 'long'"),
            ({"gaps": 3}, "gaps must be easy or hard, got 3"),
            ({"length": 29}, "8 facts, 4 questions, .* need a length of at least 30, got 29: use a longer sequence"),
        ),
    ),
    "tool-trace": Row(
        settings=(
            ToolTrace(),
            ToolTrace(agents=2, tools=2, repeats=8, questions=4, length=64, **SMALL),
            ToolTrace(agents=1, tools=1, repeats=0, questions=1, length=9, **SMALL),  # nothing to spare
        ),
        derive=latest_result,
        drawn=(ToolTrace(agents=2, tools=1, repeats=1, questions=2, length=20),),
        refused=(
            TOO_FEW_TOKENS,
            NOT_A_LENGTH,
            ({"agents": 33}, "since there are 32 agents"),
            ({"tools": 33}, "since there are 32 tools"),
            ({"repeats": -1}, "repeats must be a whole number of at least 0"),
            ({"questions": 10}, "questions must be at most 9"),
            ({"length": 53}, "13 calls, 4 questions and their markers need a length of at least 54, got 53"),
        ),
    ),
    "needle": Row(
        settings=(
            Needle(),
            Needle(needles=1),
            Needle(needles=8, length=256),
            Needle(needles=3, length=14, **SMALL),  # nothing to spare
        ),
        derive=second_time_is_a_question,
        drawn=(Needle(needles=3, length=20),),
        refused=(
            TOO_FEW_TOKENS,
            NOT_A_LENGTH,
            ({"needles": 0}, "needles must be a whole number of at least 1"),
            ({"needles": 65, "length": 999}, DISTINCT),
            ({"length": 17}, "4 needles and their questions need a length of at least 18, got 17"),
        ),
    ),
    "multi-hop": Row(
        settings=(
            MultiHop(),
            MultiHop(hops=3),
            MultiHop(written=True),
            MultiHop(hops=3, written=True, questions=1),
            MultiHop(chains=2, hops=2, questions=2, length=20, **SMALL),  # nothing to spare
            MultiHop(chains=3, hops=3, questions=1, length=40, written=True, **SMALL),
        ),
        derive=end_of_chain,
        drawn=tuple(MultiHop(chains=2, hops=2, questions=1, length=20, written=written) for written in (False, True)),
        refused=(
            TOO_FEW_TOKENS,
            NOT_A_LENGTH,
            ({"questions": 5}, "questions must be at most 4, since there are 4 chains"),
            ({"chains": 33}, "33 chains of 2 hops need as many distinct keys, 66, got num_keys=64"),
            ({"hops": 0}, "hops must be a whole number of at least 1"),
            ({"written": 1}, "written must be true or false, got 1"),
            ({"length": 31}, "4 chains of 2 hops, .* need a length of at least 32, got 31"),
        ),
    ),
    "common-word": Row(
        settings=(
            CommonWord(),
            CommonWord(most=5, margin=1, others=3, length=160),
            CommonWord(cues=2, most=2, margin=1, others=1, length=18, **SMALL),  # nothing to spare
            CommonWord(cues=3, most=4, margin=1, others=3, length=128, **SMALL),  # every value is stored
        ),
        derive=most_common,
        drawn=(CommonWord(cues=2, most=2, margin=1, others=1, length=20),),
        refused=(
            TOO_FEW_TOKENS,
            NOT_A_LENGTH,
            ({"margin": 3}, "margin must be below most, .* got 3 and 3: use a margin of at most 2"),
            ({"margin": 0}, "margin must be a whole number of at least 1"),
            ({"others": 32, "length": 999}, "others must be at most 31, since there are 31 values beside the answer"),
            ({"cues": 65, "length": 999}, DISTINCT),
            ({"length": 49}, "4 cues, 5 pairs for each, and their questions need a length of at least 50, got 49"),
        ),
    ),
    "inverse-matching": Row(
        settings=(
            InverseMatching(),
            InverseMatching(pairs=3, length=13, **SMALL),  # nothing to spare
            InverseMatching(pairs=4, length=40, **SMALL),
        ),
        derive=what_stood_before,
        drawn=(InverseMatching(pairs=3, length=16),),
        refused=(
            TOO_FEW_TOKENS,
            NOT_A_LENGTH,
            ({"pairs": 1}, "pairs must be a whole number of at least 2"),
            ({"pairs": 33, "length": 999}, "since there are 32 values"),
            ({"pairs": 33, "num_keys": 32, "length": 999}, "since there are 32 keys"),
            ({"length": 18}, "5 pairs, a filler after each, and a question need a length of at least 19, got 18"),
        ),
    ),
    "orbit": Row(
        settings=(
            OrbitRecall(),
            OrbitRecall(steps=5),
            OrbitRecall(states=2, walk=3, gap=3, queries=1, vocab_size=4, num_states=3),  # one filler, the least walk
            OrbitRecall(states=64, walk=100, gap=1, queries=64, steps=63),
        ),
        derive=along_the_walk,
        drawn=(OrbitRecall(states=4, walk=7, gap=2, queries=3, steps=2, vocab_size=14, num_states=9),),
        refused=(
            ({"states": 65, "walk": 99}, "use at most 64 states"),
            ({"walk": 12}, "walk must be a whole number of at least 13"),
            ({"steps": 12}, "use at most 11 steps"),
            ({"queries": 13}, "use at most 12 queries"),
            ({"vocab_size": 64}, "vocab_size must be a whole number of at least 65"),
        ),
    ),
    "mixture": Row(
        settings=(
            RecallMixture(),
            RecallMixture(
                (
                    (SystemPrompt(facts=3, questions=2, length=64, **SMALL), 1),
                    (ToolTrace(agents=2, tools=2, repeats=8, length=64, **SMALL), 3.5),
                )
            ),
        ),
        derive=by_its_opening,
        refused=(
            ({"parts": ()}, "parts must be pairs of a task and a positive weight, at least one"),
            ({"parts": 3}, "parts must be pairs"),
            ({"parts": [(Needle(), 0)]}, "parts must be pairs of a task and a positive weight"),
            ({"parts": [("needle", 1)]}, "parts must be pairs"),
            ({"parts": [(Needle(), "much")]}, "parts must be pairs"),
            ({"parts": [(Needle(), 1), (ToolTrace(), 1)]}, "must be equally long, got 64, 128 tokens"),
        ),
    ),
    "resource-economy": Row(
        settings=(
            ResourceEconomy(),
            ResourceEconomy(accounts=9, updates=4, length=256),  # every account there is
            ResourceEconomy(accounts=2, agents=1, resources=2, updates=3, most_added=0, length=64, **SMALL),
            ResourceEconomy(accounts=3, agents=3, resources=2, updates=2, most_added=3, length=47, **SMALL),  # no room
        ),
        derive=keep_the_books,
        drawn=(ResourceEconomy(accounts=2, agents=2, resources=2, updates=1, most_added=3, length=26),),
        refused=(
            TOO_FEW_TOKENS,
            NOT_A_LENGTH,
            ({"agents": 33}, "agents must be at most 32, since there are 32 agents to draw from"),
            ({"resources": 33}, "since there are 32 resources to draw from"),
            ({"accounts": 10}, "accounts must be at most 9, since there are 9 pairs of an agent and .* got 10"),
            ({"most_added": 32}, "since there are 31 amounts above 0"),
            ({"updates": -1}, "updates must be a whole number of at least 0"),
            ({"length": 45}, "4 accounts of 2 lines, .* need a length of at least 46, got 45"),
        ),
    ),
    "selective-copy": Row(
        settings=(
            SelectiveCopy(),
            SelectiveCopy(written=True),
            SelectiveCopy(count=1, length=5, **SMALL),  # nothing to spare
            SelectiveCopy(count=16, length=128, written=True, **SMALL),
        ),
        derive=copied_in_order,
        drawn=(SelectiveCopy(count=4, length=18),),
        refused=(
            TOO_FEW_TOKENS,
            NOT_A_LENGTH,
            ({"count": 0}, "count must be a whole number of at least 1"),
            ({"written": "yes"}, "written must be true or false, got 'yes'"),
            ({"length": 18}, "8 values, .* need a length of at least 19, got 18"),
        ),
    ),
    "fuzzy-recall": Row(
        settings=(
            FuzzyRecall(),
            FuzzyRecall(pairs=4, key_tokens=3, value_tokens=3, symbols=2),
            FuzzyRecall(pairs=4, key_tokens=2, symbols=2, length=26, **SMALL),  # every key, nothing to spare
            FuzzyRecall(pairs=8, key_tokens=1, symbols=12, length=64, **SMALL),
        ),
        derive=by_the_whole_key,
        drawn=(FuzzyRecall(pairs=2, key_tokens=2, value_tokens=2, symbols=2, length=20),),
        refused=(
            TOO_FEW_TOKENS,
            NOT_A_LENGTH,
            ({"symbols": 65}, "symbols must be at most 64, since there are 64 keys in the alphabet"),
            ({"symbols": 2}, "2 tokens of 2 symbols make 4 keys, but 6 distinct ones .* are needed"),
            ({"key_tokens": 21, "length": 999}, "are needed: change key_tokens or symbols"),
            ({"value_tokens": 0}, "value_tokens must be a whole number of at least 1"),
            ({"length": 37}, "6 pairs of 2 \\+ 1 tokens, .* need a length of at least 38, got 37"),
        ),
    ),
    "key-switch": Row(
        settings=(
            KeySwitch(),
            KeySwitch(share=0),
            KeySwitch(share=1, rebinds=3, length=128),
            KeySwitch(pairs=3, share=0.4, rebinds=2, length=18, **SMALL),  # nothing to spare
        ),
        derive=latest_value,
        drawn=(KeySwitch(pairs=3, share=0.34, rebinds=1, length=20),),
        refused=(
            TOO_FEW_TOKENS,
            NOT_A_LENGTH,
            ({"pairs": 65, "length": 999}, DISTINCT),
            ({"share": 1.5}, "share must be a number from 0 to 1, got 1.5"),
            ({"share": "half"}, "share must be a number from 0 to 1, got 'half'"),
            ({"share": float("nan")}, "share must be a number from 0 to 1, got nan"),
            ({"rebinds": 0}, "rebinds must be a whole number of at least 1"),
            ({"length": 41}, "8 keys, 4 of them re-bound 1 times, .* need a length of at least 42, got 41"),
        ),
    ),
    "variable-tracking": Row(
        settings=(
            VariableTracking(),
            VariableTracking(chains=8, variables=5, questions=3, length=256),
            VariableTracking(chains=2, variables=1, questions=2, length=14, **SMALL),  # nothing to spare
            VariableTracking(chains=3, variables=4, questions=1, length=64, **SMALL),  # every key
        ),
        derive=run_the_program,
        drawn=(VariableTracking(chains=2, variables=2, questions=1, length=20),),
        refused=(
            TOO_FEW_TOKENS,
            NOT_A_LENGTH,
            ({"questions": 4}, "questions must be at most 3, since there are 3 chains"),
            ({"chains": 22}, "22 chains of 3 variables need as many distinct keys, 66, got num_keys=64"),
            ({"variables": 0}, "variables must be a whole number of at least 1"),
            ({"length": 34}, "3 chains of 3 variables and 2 questions need a length of at least 35, got 34"),
        ),
    ),
    "frequent-words": Row(
        settings=(
            FrequentWords(),
            FrequentWords(words=8, top=5, least=3, step=2, length=128),
            FrequentWords(words=2, top=2, length=9, **SMALL),  # nothing to spare
        ),
        derive=ranked_by_count,
        drawn=(FrequentWords(words=3, top=2, least=1, step=1, length=16),),
        refused=(
            TOO_FEW_TOKENS,
            NOT_A_LENGTH,
            ({"words": 65, "length": 9999}, DISTINCT),
            ({"top": 7}, "top must be at most 6, since there are 6 words"),
            ({"step": 0}, "step must be a whole number of at least 1"),
            ({"words": 40, "top": 33, "length": 9999}, "top must be at most 32, since there are 32 values"),
            ({"length": 26}, "6 words, 21 times in all, and 2 questions need a length of at least 27, got 26"),
        ),
    ),
}
