"""Claims about the algebra alone, which need no trained model: the operator, one-off keys, recall per byte."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

from echo_ska.experiments.algebra import one_off_report, operator_error_report, recall_map_report
from echo_ska.experiments.claims.claim import Claim, Criterion, Finding, Table
from echo_ska.experiments.claims.evidence import of_seeds
from echo_ska.experiments.claims.words import gain
from echo_ska.training import RunRecord

Records = Sequence[RunRecord]

# Places in the rows that records of operator-error hold: |K^ - K|, |K^ - limit|, and the bound of the former.
_ERROR, _DISTANCE, _BOUND = 0, 1, 5
_QUARTERED = (3.0, 5.3)
_NEAR = 0.2


def operator_rows(records: Records, system: str, noise: float, ridge: float) -> list[list[float]]:
    """By length, the medians over seeds of a record's figures."""
    key = f"{noise:g}, {ridge:g}"
    seeds = [record.figures["systems"][system]["rows"][key] for record in records]
    return [[median(values) for values in zip(*rows, strict=True)] for rows in zip(*seeds, strict=True)]


def _bounded(records: Records) -> Finding:
    largest = max(
        row[_ERROR] / row[_BOUND]
        for record in records
        for system in record.figures["systems"].values()
        for rows in system["rows"].values()
        for row in rows
    )
    return Finding(largest <= 1.0, f"largest error : bound {largest:.2f}")


def _converges(records: Records) -> Finding:
    configuration = records[0].configuration
    lengths, ridge = configuration["lengths"], configuration["ridges"][0]
    short = lengths.index(lengths[-1] // 16)
    falls = []
    for noise in configuration["noises"]:
        rows = operator_rows(records, "linear", noise, ridge)
        falls.append(rows[short][_DISTANCE] / rows[-1][_DISTANCE])
    shown = " to ".join(f"{fall:.1f}" for fall in sorted({min(falls), max(falls)}))
    return Finding(_QUARTERED[0] <= min(falls) and max(falls) <= _QUARTERED[1], f"{shown} times")


def _shrinks(records: Records) -> Finding:
    configuration = records[0].configuration
    place, noise = len(configuration["noises"]) - 1, configuration["noises"][-1]
    error = operator_rows(records, "sphere", noise, configuration["ridges"][0])[-1][_ERROR]
    bias = median(record.figures["systems"]["sphere"]["bias"][place] for record in records)
    return Finding(abs(error - bias) <= _NEAR * bias, f"{error:.3f}, predicted {bias:.3f}")


def _operator_table(records: Records) -> list[Table]:
    configuration = records[0].configuration
    lengths = configuration["lengths"]
    shown = [lengths[0], lengths[len(lengths) // 2], lengths[-1]]
    rows = [["keys", "noise", "ridge", *(f"T = {length:,}" for length in shown)]]
    for system in records[0].figures["systems"]:
        for noise in configuration["noises"]:
            for ridge in configuration["ridges"]:
                found = operator_rows(records, system, noise, ridge)
                cells = [f"{found[lengths.index(length)][_ERROR]:.3f}" for length in shown]
                rows.append([system, f"{noise:g}", f"{ridge:g}", *cells])
    return [Table("Error of the fitted operator, spectral norm, medians over seeds", rows)]


OPERATOR: Claim[Records] = Claim(
    key="operator-error",
    title="The fitted operator is the true one, as far as noise lets it",
    statement="The operator that the state holds is within a stated bound of the true map from a key to the next; "
    "its error falls like 1 / sqrt(T), and for keys of unit norm a predicted shrinkage stays.",
    source="ours",
    commands=("echo-ska reproduce operator-error",),
    gather=lambda folder: of_seeds(folder, "operator-error", 8),
    criteria=(
        Criterion(
            "Keys of a linear system, smallest ridge: over 16 times the length the error falls by "
            f"{_QUARTERED[0]:g} to {_QUARTERED[1]:g} times (4 is 1 / sqrt(T)), at every noise",
            _converges,
        ),
        Criterion(
            f"Keys of unit norm, largest noise: what is left at the end is within {100 * _NEAR:g} % of the prediction",
            _shrinks,
        ),
        Criterion(
            "No error of any seed, length, noise and ridge is above its bound (which is proven: this checks the code)",
            _bounded,
        ),
    ),
    summary=lambda r: (
        f"{_bounded(r).ours.capitalize()}; over 16 times the length the error falls {_converges(r).ours}; on the "
        f"sphere {_shrinks(r).ours} is left."
    ),
    tables=_operator_table,
    draw=operator_error_report.draw,
    picture="Error of the fitted operator against length, measured, bounded and predicted.",
    caveats=("Keys of trained models.",),
    criteria_after=True,
)

# Places in the lists that records of one-off-distractors hold: whitened norm, and read along the value at the match.
_WHITENED, _AT_MATCH = 0, 1
_RIDGE = 0.1
_GONE = 0.1
_DIGITS = 0.02


def _one_off(records: Records, name: str, kind: str, place: int) -> float:
    """The mean over seeds of a figure where the fewest but one are one-off keys, apart from the persistent ones."""
    configuration = records[0].configuration
    series = f"{configuration['places'][0]}, {configuration['one_offs'][1]}, {_RIDGE:g}"
    return fmean(record.figures["reads"][series][name][kind][place] for record in records)


def _own_value(records: Records) -> Finding:
    before, after = (_one_off(records, name, "one_off", _AT_MATCH) for name in ("K=0", "K=2"))
    return Finding(abs(after) <= _GONE * before, f"{before:.3f} to {after:.3f}")


def _eigenvectors(records: Records) -> Finding:
    moduli = records[0].configuration["moduli"]
    apart = max(
        abs(fmean(record.figures["modes"][f"K={power}"][place] for record in records) - modulus**power)
        for place, modulus in enumerate(moduli)
        for power in (1, 2, 4)
    )
    return Finding(apart <= _DIGITS, f"at most {apart:.3f} apart")


def _silent(records: Records) -> Finding:
    ratio = _one_off(records, "K=4", "one_off", _WHITENED) / _one_off(records, "K=4", "persistent", _WHITENED)
    return Finding(ratio <= _GONE, f"{ratio:.2f} of a persistent key's")


def _mode_table(records: Records) -> list[Table]:
    names = [name for name in records[0].configuration["filters"] if "blended" not in name]
    rows = [["modulus", *names]]
    for place, modulus in enumerate(records[0].configuration["moduli"]):
        kept = [fmean(record.figures["modes"][name][place] for record in records) for name in names]
        cells = [f"{value:.3f} ({modulus**power:.3f})" for power, value in enumerate(kept)]
        rows.append([f"{modulus:g}", *cells])
    return [Table("What is left of a query along an eigenvector (modulus to the K)", rows)]


ONE_OFF: Claim[Records] = Claim(
    key="one-off-distractors",
    title="Keys that occur once are suppressed",
    statement="The power filter keeps what persists, |lambda| near 1, and suppresses keys that occur once as "
    "|lambda|^K.",
    source="the paper's reading of the filter, tested by us",
    commands=("echo-ska reproduce one-off-distractors",),
    gather=lambda folder: of_seeds(folder, "one-off-distractors", 8),
    criteria=(
        Criterion(f"At K = 2 at most {_GONE:g} of a one-off key's own value is left", _own_value, "suppressed"),
        Criterion(
            f"Along an eigenvector |lambda|^K is left, within {_DIGITS:g}, at K = 1, 2 and 4",
            _eigenvectors,
            "|lambda|^K",
        ),
        Criterion(
            f"At K = 4 a one-off key's whitened norm is at most {_GONE:g} of a persistent key's: its read is silent",
            _silent,
            "suppressed",
        ),
    ),
    summary=lambda r: (
        f"A one-off key's own value goes from {_own_value(r).ours} between K = 0 and K = 2; at K = 4 its whitened "
        f"norm is {_silent(r).ours}; along eigenvectors |lambda|^K is {_eigenvectors(r).ours}."
    ),
    tables=_mode_table,
    draw=one_off_report.draw,
    picture="How strongly a read answers a one-off key and a persistent one, by power.",
    caveats=("Keys of trained models.",),
    criteria_after=True,
)

# Places in a cell that records of recall-map hold: accuracy of SKA at power 0 and of its peers.
_SKA, _PEERS = 0, {"linear attention": 2, "DeltaNet": 3, "linear attention, keys centred": 4}
_TIE = 0.5
_KINDS = 5


def leads(records: Records, kind: str, width: float) -> dict[float, float]:
    """By load N : r, points by which SKA is ahead of the best of its peers at P : r = `width`."""
    found = [record.figures["cells"] for record in records if record.configuration["kind"] == kind]
    result = {}
    for load in records[0].configuration["loads"]:
        means = [fmean(values) for values in zip(*(cells[f"{width:g}, {load:g}"] for cells in found), strict=True)]
        result[load] = 100 * (means[_SKA] - max(means[place] for place in _PEERS.values()))
    return result


def _kinds(records: Records) -> list[str]:
    return list(dict.fromkeys(record.configuration["kind"] for record in records))


def _below_the_rule(records: Records, kind: str) -> list[float]:
    """The leads at every width and every load below N = r + 2P."""
    return [
        lead
        for width in records[0].configuration["widths"]
        for load, lead in leads(records, kind, width).items()
        if load < 1 + 2 * width
    ]


def _random_keys(records: Records) -> Finding | None:
    if "random" not in _kinds(records):
        return None
    worst = min(_below_the_rule(records, "random"))
    return Finding(worst >= -_TIE, f"at worst {gain(worst)}")


def _at_the_rule(records: Records) -> Finding | None:
    if "random" not in _kinds(records):
        return None
    found = {
        width: lead
        for width in records[0].configuration["widths"]
        for load, lead in leads(records, "random", width).items()
        if load == 1 + 2 * width
    }
    if not found:
        return None
    shown = "; ".join(f"P = {width:g} r {gain(lead)}" for width, lead in found.items())
    return Finding(min(found.values()) >= -_TIE, shown)


def _all_keys(records: Records) -> Finding | None:
    if len(_kinds(records)) < _KINDS:
        return None
    worst = {kind: min(_below_the_rule(records, kind)) for kind in _kinds(records)}
    return Finding(min(worst.values()) >= -_TIE, "; ".join(f"{kind} {gain(lead)}" for kind, lead in worst.items()))


def _map_table(records: Records) -> list[Table]:
    rows = [["keys", "P : r", *(f"N = {load:g} r" for load in records[0].configuration["loads"])]]
    for kind in _kinds(records):
        for width in records[0].configuration["widths"]:
            rows.append([kind, f"{width:g}", *(f"{lead:+.1f}" for lead in leads(records, kind, width).values())])
    return [Table("SKA at power 0 less the best of its peers at equal bytes, points", rows)]


RECALL_MAP: Claim[Records] = Claim(
    key="recall-map",
    title="More recall per byte, up to N = r + 2P",
    statement="At equal bytes of state, untrained, SKA at power 0 recalls at least as much as linear attention (its "
    "keys centred or not) and DeltaNet while it holds fewer than r + 2P pairs.",
    source="ours",
    commands=("echo-ska reproduce recall-map",),
    gather=lambda folder: of_seeds(folder, "recall-map", 5, lambda record: str(record.configuration["kind"])),
    criteria=(
        Criterion(
            f"Random keys, every width: never more than {_TIE:g} points behind the best peer at a load below r + 2P",
            _random_keys,
        ),
        Criterion(f"At N = r + 2P itself, where the map has that load: at most {_TIE:g} behind", _at_the_rule),
        Criterion("Below r + 2P, the same for all five kinds of keys", _all_keys),
    ),
    summary=lambda r: (
        "SKA minus the best peer below N = r + 2P, at every width, by kind of keys: "
        + "; ".join(
            f"{kind} {gain(min(found))} to {gain(max(found))}"
            for kind in _kinds(r)
            if (found := _below_the_rule(r, kind))
        )
        + "."
    ),
    tables=_map_table,
    draw=recall_map_report.draw,
    picture="A grid of load by width of values for every kind of keys: who recalls more for the same bytes.",
    caveats=(
        "Keys, values and write strengths as training would make them.",
        "Where the lead over the best peer ends between two loads of the map: by straight lines between them, at 0.8 "
        "to 0.9 of r + 2P with random keys.",
    ),
    criteria_after=True,
)
