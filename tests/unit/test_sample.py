"""The arithmetic of the sample; the stage itself is tested on Ray."""

import pyarrow as pa
import pytest
from pydantic import ValidationError

from llambert import sample
from llambert.sample import SampleConfig


class Counted:
    records = 0

    def add(self, records):
        self.records += records


def test_threshold_lets_few_more_through():
    for size, records in ((10, 10**6), (1000, 50_000), (10**6, 10**9)):
        share = sample._threshold(size, records) / 2**64 * records
        assert size + 6 * size**0.5 <= share <= size + 6 * size**0.5 + 37
    assert sample._threshold(900, 1000) == 2**64


def test_hash_is_the_same_for_ever():
    """A change here would draw other records from every corpus: annotations paid for are lost."""
    assert sample._hash(42, "train/pos/1_7") == 18153340798622842187
    assert sample._hash(43, "train/pos/1_7") != 18153340798622842187
    assert sample._hash(4, "2x") != sample._hash(42, "x")


def test_pick_takes_integers_as_strings_and_spreads_evenly():
    n = 20_000
    ids = pa.array(range(n), pa.int64())
    counter = Counted()
    table = pa.table({"id": ids, "text": pa.array(["t"] * n)})
    picked = sample._pick(table, seed=1, threshold=2**62, counter=counter)
    assert picked.schema == sample._DRAWN
    assert counter.records == n
    assert abs(picked.num_rows - n / 4) < 6 * (n * 3 / 16) ** 0.5
    assert sample._pick(table, seed=1, threshold=2**64, counter=counter).num_rows == n


@pytest.mark.parametrize("size", [0, -1])
def test_size_is_positive(size):
    with pytest.raises(ValidationError, match="greater than 0"):
        SampleConfig(size=size)


def test_other_records_come_in_the_order_of_the_draw():
    ids = [f"r{i}" for i in range(50)]
    table = pa.table({"id": ids, "text": ids, "label": ids})
    ordered = sample.as_drawn(table, seed=3)
    assert ordered["id"].to_pylist() == sorted(ids, key=lambda id: sample._hash(3, id))
    assert ordered["label"].equals(ordered["id"]) and ordered.schema == table.schema
    assert sample.as_drawn(table.slice(0, 0), seed=3).num_rows == 0
