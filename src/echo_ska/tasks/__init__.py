"""Recall tasks: seeded, streamed, validated.

Each module's docstring draws its sequence: see `echo_ska.tasks.mqar` and `echo_ska.tasks.mqar_grid`.
"""

from echo_ska.tasks.alphabet import Alphabet, Marker
from echo_ska.tasks.base import IGNORED, RecallBatch, RecallTask, accuracy, answer_positions
from echo_ska.tasks.common_word import CommonWord
from echo_ska.tasks.frequent_words import FrequentWords
from echo_ska.tasks.fuzzy_recall import FuzzyRecall
from echo_ska.tasks.inverse_matching import InverseMatching
from echo_ska.tasks.key_switch import KeySwitch
from echo_ska.tasks.mixture import RecallMixture
from echo_ska.tasks.mqar import MultiQueryRecall
from echo_ska.tasks.mqar_grid import MultiQueryRecallGrid
from echo_ska.tasks.multi_hop import MultiHop
from echo_ska.tasks.needle import Needle
from echo_ska.tasks.orbit import OrbitRecall
from echo_ska.tasks.resource_economy import ResourceEconomy
from echo_ska.tasks.selective_copy import SelectiveCopy
from echo_ska.tasks.system_prompt import SystemPrompt
from echo_ska.tasks.tool_trace import ToolTrace
from echo_ska.tasks.variable_tracking import VariableTracking

TASKS: dict[str, type[RecallTask]] = {
    "mqar": MultiQueryRecall,
    "mqar-grid": MultiQueryRecallGrid,
    "system-prompt": SystemPrompt,
    "tool-trace": ToolTrace,
    "needle": Needle,
    "multi-hop": MultiHop,
    "common-word": CommonWord,
    "inverse-matching": InverseMatching,
    "orbit": OrbitRecall,
    "mixture": RecallMixture,
    "resource-economy": ResourceEconomy,
    "selective-copy": SelectiveCopy,
    "fuzzy-recall": FuzzyRecall,
    "key-switch": KeySwitch,
    "variable-tracking": VariableTracking,
    "frequent-words": FrequentWords,
}
"""Task classes by the name the command line uses."""

__all__ = [
    "IGNORED",
    "TASKS",
    "Alphabet",
    "CommonWord",
    "FrequentWords",
    "FuzzyRecall",
    "InverseMatching",
    "KeySwitch",
    "Marker",
    "MultiHop",
    "MultiQueryRecall",
    "MultiQueryRecallGrid",
    "Needle",
    "OrbitRecall",
    "RecallBatch",
    "RecallMixture",
    "RecallTask",
    "ResourceEconomy",
    "SelectiveCopy",
    "SystemPrompt",
    "ToolTrace",
    "VariableTracking",
    "accuracy",
    "answer_positions",
]
