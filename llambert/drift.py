"""Whether a night's labels look like those before: label shares, confidence, text lengths."""

from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike
from pydantic import Field

from llambert.section import Section
from llambert.storage import Folder

# Upper edges, in characters, of the buckets of a histogram of text lengths: three to an octave.
LENGTH_EDGES = np.unique(np.round(2.0 ** (np.arange(94) / 3)).astype(np.int64))
_BINS = 10  # of the population stability index, as is usual
_NAMED = 3  # labels that a message names
_QUANTILES = (0.1, 0.5, 0.9)  # of the text lengths, in a message
_READERS = 16  # files of labels read at once


class NightlyConfig(Section):
    """Past these bounds a night is held back: its labels are kept and not published."""

    label_shift: float = Field(
        0.1,
        gt=0,
        description="Most by which the label shares may differ from the reference's: total "
        "variation distance, 0 (equal) to 1.",
    )
    confidence_drop: float = Field(
        0.05, gt=0, description="Most by which the mean confidence may be below the reference's."
    )
    length_shift: float = Field(
        0.25,
        gt=0,
        description="Largest population stability index of the text lengths; below 0.1 counts as "
        "unchanged and above 0.25 as a shift (Siddiqi, Credit Risk Scorecards, 2006).",
    )
    refused_share: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Most of a night's records that may be refused, those without a usable text "
        "or id and duplicates within the night, and most of its files that cannot be read.",
    )
    least_records: int = Field(
        500,
        ge=1,
        description="Nights of fewer labels are not judged, for chance alone may take them past "
        "the bounds; with dozens of labels ask for thousands.",
    )


@dataclass(frozen=True)
class Profile:
    """What a set of labelled records looks like, in a few figures."""

    labels: dict[str, int]  # records by label
    confidence: float | None  # mean
    lengths: dict[str, int]  # records by the upper edge of their text's bucket, in characters

    @property
    def records(self) -> int:
        return sum(self.labels.values())

    def share(self, label: str) -> float:
        return self.labels.get(label, 0) / max(1, self.records)


def length_histogram(lengths: ArrayLike, records: ArrayLike | None = None) -> dict[str, int]:
    """How many records have texts of which length: a bucket's upper edge -> records.

    Args:
        lengths: In characters.
        records: How many records have each; by default one.
    """
    buckets = np.searchsorted(LENGTH_EDGES, np.asarray(lengths, dtype=np.int64))
    buckets = np.minimum(buckets, len(LENGTH_EDGES) - 1)
    counts = np.bincount(buckets, weights=None if records is None else np.asarray(records))
    return {str(LENGTH_EDGES[i]): int(counts[i]) for i in np.flatnonzero(counts)}


def training_profile(details: dict[str, Any]) -> Profile | None:
    """The profile of a model's training records, from its manifest; None where it has none.

    The confidence is that on the records held back from the training.
    """
    if "text_lengths" not in details:  # of a model made elsewhere, or before there were nights
        return None
    return Profile(
        details["records_by_label"], details.get("validation_confidence"), details["text_lengths"]
    )


def labels_profile(labels: Folder, lengths: dict[str, int]) -> Profile:
    """The profile of a folder of labels, read a few files and a few thousand rows at a time."""

    def count(name: str) -> tuple[Counter[str], float]:
        seen: Counter[str] = Counter()
        confidence = 0.0
        with labels.fs.open(labels.path(name), "rb") as file:
            for batch in pq.ParquetFile(file).iter_batches(columns=["label", "confidence"]):
                for entry in pc.value_counts(batch["label"]).to_pylist():
                    seen[entry["values"]] += entry["counts"]
                confidence += pc.sum(batch["confidence"]).as_py() or 0.0
        return seen, confidence

    shares: Counter[str] = Counter()
    total = 0.0
    with ThreadPoolExecutor(_READERS) as readers:
        for seen, confidence in readers.map(count, labels.files(".parquet")):
            shares.update(seen)
            total += confidence
    records = shares.total()
    return Profile(dict(shares), round(total / records, 5) if records else None, lengths)


def together(profiles: Iterable[Profile]) -> Profile:
    """The profile of all their records taken together."""
    labels: Counter[str] = Counter()
    lengths: Counter[str] = Counter()
    weighed: list[tuple[float, int]] = []
    for profile in profiles:
        labels.update(profile.labels)
        lengths.update(profile.lengths)
        if profile.confidence is not None:
            weighed.append((profile.confidence, profile.records))
    records = sum(n for _, n in weighed)
    confidence = sum(mean * n for mean, n in weighed) / records if records else None
    return Profile(dict(labels), confidence, dict(lengths))


def shifts(night: Profile, reference: Profile) -> dict[str, float]:
    """How far the night is from the reference, by the names of the bounds in `NightlyConfig`.

    `confidence_drop` is left out where either confidence is unknown.
    """
    names = night.labels.keys() | reference.labels.keys()
    moved = sum(abs(night.share(name) - reference.share(name)) for name in names) / 2
    found = {"label_shift": moved, "length_shift": _stability(night.lengths, reference.lengths)}
    if night.confidence is not None and reference.confidence is not None:
        found["confidence_drop"] = reference.confidence - night.confidence
    return {name: round(value, 4) for name, value in found.items()}


def reasons(config: NightlyConfig, night: Profile, reference: Profile, name: str) -> list[str]:
    """Why the night looks wrong, a sentence for each bound that it is past; empty: it does not.

    Args:
        name: What the reference is, for the sentences.
    """
    found = shifts(night, reference)
    past = {key for key, value in found.items() if value > getattr(config, key)}
    said = []
    if "label_shift" in past:
        said.append(
            f"the label shares are {found['label_shift']:.3f} away from those of {name} "
            f"(label_shift: {config.label_shift:g}): {_moved(night, reference)}"
        )
    if "confidence_drop" in past:
        said.append(
            f"the mean confidence is {night.confidence:.3f} and that of {name} "
            f"{reference.confidence:.3f} (confidence_drop: {config.confidence_drop:g})"
        )
    if "length_shift" in past:
        said.append(
            f"the population stability index of the text lengths is {found['length_shift']:.3f} "
            f"against {name} (length_shift: {config.length_shift:g}): a tenth of the texts, half "
            f"and nine tenths have up to about {_quantiles(night.lengths)} characters instead of "
            f"{_quantiles(reference.lengths)}"
        )
    return said


def _moved(night: Profile, reference: Profile) -> str:
    """The labels whose shares differ most, each with both."""

    def distance(label: str) -> float:
        return abs(night.share(label) - reference.share(label))

    names = sorted(night.labels.keys() | reference.labels.keys(), key=distance, reverse=True)
    return ", ".join(
        f"{label} {night.share(label):.1%} instead of {reference.share(label):.1%}"
        for label in names[:_NAMED]
    )


def _stability(night: dict[str, int], reference: dict[str, int]) -> float:
    """The population stability index of two histograms: the sum of (p - q) ln(p / q) over bins.

    The bins hold about equal shares of both taken together. Bins made by the reference alone, as
    is more usual, see nothing where all its texts have one length. Half a record is added to
    each bin, as the logarithm of nothing is infinite.
    """
    edges = sorted(night.keys() | reference.keys(), key=int)
    counts = np.array([[each.get(edge, 0) for edge in edges] for each in (night, reference)])
    totals = counts.sum(axis=1, keepdims=True)
    if not totals.all():
        return 0.0
    share = (counts / totals).mean(axis=0)
    _, bins = np.unique(((np.cumsum(share) - share / 2) * _BINS).astype(int), return_inverse=True)
    binned = np.array([np.bincount(bins, weights=row) for row in counts]) + 0.5
    p, q = binned / binned.sum(axis=1, keepdims=True)
    return float(((p - q) * np.log(p / q)).sum())


def _quantiles(lengths: dict[str, int]) -> str:
    """The upper edges of the buckets that the `_QUANTILES` of the texts fall into."""
    edges = sorted(map(int, lengths))
    seen = np.cumsum([lengths[str(edge)] for edge in edges]) / max(sum(lengths.values()), 1)
    found = [edges[min(int(np.searchsorted(seen, q)), len(edges) - 1)] for q in _QUANTILES]
    return ", ".join(f"{edge:,}" for edge in found)


def refused(
    bounds: NightlyConfig, counts: Mapping[str, Any], details: Mapping[str, Any]
) -> list[str]:
    """Why a night is held back of which corpus tells these counts and details, if that is why."""
    read, dropped = counts["in"], counts["dropped"]
    if read and not counts["out"]:
        return ["not one of its records is good: quarantine/ has the reasons"]
    most, said = bounds.refused_share, []
    if details["corrupt_files"] > most * details["files"]:  # each of them counts as one record
        said.append(f"{details['corrupt_files']:,} of {details['files']:,} files cannot be read")
    count = sum(dropped.values())
    if read >= bounds.least_records and count > most * read:
        listed = ", ".join(f"{reason} {records:,}" for reason, records in dropped.items())
        said.append(f"{count:,} of {read:,} records are refused ({listed})")
    return [f"{each}: more than {most:g} (refused_share)" for each in said]
