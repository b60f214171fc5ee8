"""What the LLM is asked of sample and gold, and which of its answers belongs to which record."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from llambert.gold import Gold, first_by_hash, without
from llambert.schema import SAMPLE
from llambert.storage import Folder, fingerprint, fingerprint_rows

GOLD_PREFIX = "gold:"  # before the id of a gold record that a sampled one has too

ANNOTATED_GOLD = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("id", "text", "gold", "label")),
        pa.field("confidence", pa.float32()),
        *(pa.field(name, pa.string()) for name in ("reject_reason", "response")),
    ]
)
LABELLED_GOLD = pa.schema([ANNOTATED_GOLD.field(place) for place in range(5)])


@dataclass(frozen=True)
class GoldTest:
    """The gold test records as the encoder that labelled the corpus labelled them.

    `predictions` has the columns of LABELLED_GOLD, in an order that has nothing to do with their
    labels; `known` the LLM's label, or None for an answer that was rejected, of those that
    annotate asked about, by id; `most` is how many others the LLM may be asked.
    """

    predictions: pa.Table
    known: dict[str, str | None]
    most: int


@dataclass(frozen=True)
class Asked:
    """Sample and gold of one run, and what its annotator said of them."""

    sample: Folder  # the sample stage's
    annotator: Folder
    gold: Gold
    most: int  # gold test records that are asked

    def records(self) -> pa.Table:
        """The sample and the first gold test records by hash of id, whose texts are asked once.

        A gold record with the id of a sampled record and another text gets an id of its own.
        """
        sample, chosen = self._sampled(), first_by_hash(self.gold.test, self.most)
        ids = set(sample["id"].to_pylist())
        texts, rows = set(sample["text"].to_pylist()), []
        for row in chosen.to_pylist():
            if row["text"] not in texts:
                texts.add(row["text"])
                key = GOLD_PREFIX * (row["id"] in ids) + row["id"]
                rows.append({"id": key, "text": row["text"]})
        return pa.concat_tables([sample, pa.Table.from_pylist(rows, schema=SAMPLE)])

    def annotated_gold(self) -> pa.Table:
        """The annotated records that have a gold label, with what the LLM made of them.

        Columns: id, text, gold, label, confidence, reject_reason, response.

        They are found by their text: ids of different files may be the same by chance. A test
        record bears its own id, by which the encoders' labels are compared with it; of records
        with one text one is there.
        """
        train = {row["text"]: row for row in self.gold.train.to_pylist()}
        test = {row["text"]: row for row in self.gold.test.to_pylist()}
        answers = {row["id"]: row for row in self._annotations().to_pylist()}
        rows: dict[str, dict[str, Any]] = {}
        for record in self.records().to_pylist():
            known = test.get(record["text"]) or train.get(record["text"])
            if known:
                key = known["id"] if record["text"] in test else f"train:{known['id']}"
                truth = {"id": key, "text": record["text"], "gold": known["label"]}
                rows.setdefault(key, {**answers[record["id"]], **truth})
        return pa.Table.from_pylist(list(rows.values()), schema=ANNOTATED_GOLD).sort_by("id")

    def annotated_sample(self) -> tuple[pa.Table, dict[str, int]]:
        """id, text, label of the sampled records to train on; how many are left out, and why."""
        sample, answers = self._sampled(), _labels_by_id(self._annotations())
        labels = pa.array([answers.get(key) for key in sample["id"].to_pylist()], pa.string())
        labelled = sample.append_column("label", labels).filter(labels.is_valid())
        kept = without(labelled, self.gold.test)
        dropped = {
            "no_label": sample.num_rows - labelled.num_rows,
            "in_gold_test": labelled.num_rows - kept.num_rows,
        }
        return kept, {reason: records for reason, records in dropped.items() if records}

    def to_train(self) -> str:
        """A fingerprint of `annotated_sample`, of which the LLM's answers for gold are no part."""
        kept, dropped = self.annotated_sample()
        return fingerprint([fingerprint_rows(kept, "id", "text", "label"), dropped])

    def gold_test(self, predicted: pa.Table) -> GoldTest:
        """What an encoder and the LLM made of the gold test records.

        Args:
            predicted: what the encoder made of them: the columns of LABELLED_GOLD but for the
                text, sorted by id.
        """
        texts = self.gold.test.sort_by("id")["text"]
        table = first_by_hash(predicted.append_column("text", texts), predicted.num_rows)
        return GoldTest(table, _labels_by_id(self.annotated_gold()), self.most)

    def _sampled(self) -> pa.Table:
        return self.sample.read_table("sample.parquet")

    def _annotations(self) -> pa.Table:
        columns = ["id", "label", "confidence", "reject_reason", "response"]
        return self.annotator.read_table("annotations.parquet", columns)


def _labels_by_id(annotations: pa.Table) -> dict[str, str | None]:
    """The label of each annotated record; None where the answer was rejected."""
    return dict(zip(annotations["id"].to_pylist(), annotations["label"].to_pylist(), strict=True))
