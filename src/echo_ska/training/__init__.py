"""Training: one loop for every model and task, its data, checkpoints, reports and records.

`echo_ska.training.recipes` has trainings by name; it needs the models, which are slow to import.
"""

from echo_ska.training.bits_per_byte import TextScore, bits_per_byte
from echo_ska.training.books import book_path
from echo_ska.training.config import TrainingConfig
from echo_ska.training.data import DataSource, RecallData, RecallSchedule
from echo_ska.training.log import Observer
from echo_ska.training.loop import train
from echo_ska.training.observers import Observers, TensorBoardObserver, WandbObserver, open_observers
from echo_ska.training.records import RunRecord, make_record
from echo_ska.training.reporter import (
    LineReporter,
    ProgressReporter,
    QueueReporter,
    Reporter,
    ThroughputReporter,
    console_reporter,
    training_progress,
)
from echo_ska.training.scale import ScaleConfig
from echo_ska.training.text import TextData, TextFile, TextSplit, load_text, split_by_file
from echo_ska.training.throughput import Throughput

__all__ = [
    "DataSource",
    "LineReporter",
    "Observer",
    "Observers",
    "ProgressReporter",
    "QueueReporter",
    "RecallData",
    "RecallSchedule",
    "Reporter",
    "RunRecord",
    "ScaleConfig",
    "TensorBoardObserver",
    "TextData",
    "TextFile",
    "TextScore",
    "TextSplit",
    "Throughput",
    "ThroughputReporter",
    "TrainingConfig",
    "WandbObserver",
    "bits_per_byte",
    "book_path",
    "console_reporter",
    "load_text",
    "make_record",
    "open_observers",
    "split_by_file",
    "train",
    "training_progress",
]
