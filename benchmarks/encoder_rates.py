"""How many records a second encoders label on this machine, in turns in one process.

    python benchmarks/encoder_rates.py --corpus ../shared/imdb/corpus.parquet MODEL MODEL …

A model is a hub name or a folder; one without a classification head gets a new one, for the speed
does not depend on its weights. Tokenization is included, the reading of the corpus is not.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

from llambert.classify import Labeller
from llambert.encoder import load_classifier, load_tokenizer, tokenize


def classifier(model: str, folder: str, max_length: int) -> str:
    """A folder with `model` as a classifier of two labels that reads `max_length` tokens."""
    tokenizer = load_tokenizer(model)
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(folder)
    load_classifier(model, ["negative", "positive"]).save_pretrained(folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--corpus", required=True, help="Parquet with a column `text`")
    parser.add_argument("--records", type=int, default=500)
    parser.add_argument("--max-length", type=int, default=512, help="tokens")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--dtype", default="float32", help="of torch, such as bfloat16")
    a = parser.parse_args()
    texts = pq.read_table(a.corpus, columns=["text"]).slice(0, a.records)["text"].to_pylist()
    with tempfile.TemporaryDirectory() as place:
        labellers = {
            model: Labeller(
                classifier(model, str(Path(place) / str(number)), a.max_length),
                dtype=a.dtype,
                threads=a.threads,
            )
            for number, model in enumerate(a.models)
        }
    tokenizers = {model: load_tokenizer(model) for model in a.models}
    rates: dict[str, list[float]] = {model: [] for model in a.models}
    for turn in range(a.turns + 1):
        for model, labeller in labellers.items():
            started = time.perf_counter()
            labeller.predict(tokenize(tokenizers[model], texts, a.max_length))
            if turn:  # the first warms up
                rates[model].append(len(texts) / (time.perf_counter() - started))
    first = statistics.median(rates[a.models[0]])
    for model, measured in rates.items():
        median = statistics.median(measured)
        runs = ", ".join(f"{rate:.1f}" for rate in measured)
        print(f"{median:10.1f} records/s  {median / first:6.2f}x  {model}  ({runs})")


if __name__ == "__main__":
    main()
