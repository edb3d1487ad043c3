"""The mathematics of SKA: pure functions and values, PyTorch only."""

from echo_ska.algebra.koopman import KoopmanOperator
from echo_ska.algebra.read import read
from echo_ska.algebra.record import TensorRecord, concatenate
from echo_ska.algebra.ridge import RidgeFactor
from echo_ska.algebra.statistics import SufficientStatistics, accumulator_dtype, weighted

__all__ = [
    "KoopmanOperator",
    "RidgeFactor",
    "SufficientStatistics",
    "TensorRecord",
    "accumulator_dtype",
    "concatenate",
    "read",
    "weighted",
]
