"""Real reviews in parts: to train on, further ones with Llama's labels only, and to test on.

    python benchmarks/imdb_splits.py ../shared/imdb/train.parquet runs/imdb --train 2000

Of 25,000 reviews with a gold label and Llama-2-70b's, FOLDER gets train.parquet and test.parquet
(id, text, gold), extra.parquet (id, text) and answers.parquet (id, response: Llama's label of
every review). benchmarks/imdb.yaml reads them.
"""

import argparse

import pyarrow as pa
import pyarrow.parquet as pq

from llambert.storage import Folder, text_hash


def split(
    source: str, folder: str, train: int, extra: int, test: int, seed: int = 0
) -> dict[str, pa.Table]:
    """Write the parts and return them.

    They are drawn by hash of id: with one seed the test part is that of its size, a larger train
    part contains the smaller one, and so does a larger extra part, taken from the other end.

    Args:
        source: Parquet with the columns id, text, gold, llama2_70b.
    """
    table = pq.read_table(source, columns=["id", "text", "gold", "llama2_70b"])
    if train + extra + test > table.num_rows:
        raise SystemExit(
            f"{train} + {extra} + {test} records are more than the {table.num_rows} of {source}"
        )
    places = [text_hash(f"{seed}:{key}") for key in table["id"].to_pylist()]
    table = table.take(sorted(range(table.num_rows), key=places.__getitem__))
    answers = table.select(["id", "llama2_70b"]).rename_columns(["id", "response"])
    parts = {
        "test": table.slice(0, test).select(["id", "text", "gold"]),
        "train": table.slice(test, train).select(["id", "text", "gold"]),
        "extra": table.slice(table.num_rows - extra).select(["id", "text"]),
        "answers": answers,
    }
    for name, part in parts.items():
        Folder(folder).write_table(f"{name}.parquet", part)
    return parts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="Parquet with id, text, gold, llama2_70b")
    parser.add_argument("folder")
    parser.add_argument("--train", type=int, default=10_000)
    parser.add_argument("--extra", type=int, default=10_000)
    parser.add_argument("--test", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    parts = split(a.source, a.folder, a.train, a.extra, a.test, a.seed)
    print(", ".join(f"{name} {part.num_rows:,}" for name, part in parts.items()))


if __name__ == "__main__":
    main()
