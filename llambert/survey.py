"""How many records a corpus has, and how many tokens each: counted from a part of it.

Memory and time are bounded whatever the corpus' size. No Ray is needed.
"""

import itertools
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llambert.columns import Unreadable
from llambert.encoder import load_tokenizer, local_folder, longest_text, tokenize
from llambert.engines.config import AnnotateConfig
from llambert.engines.prompts import ControlTokenError
from llambert.formats import COMPRESSIONS, SourceFile
from llambert.plan import Range
from llambert.records import Corpus, Source, read_positions
from llambert.sample import HASHES, hashed
from llambert.task import TaskConfig, messages

_READ_BYTES = 256 * 2**20  # of texts, read one after another: some seconds
_MARKS = 3  # steps of a reader to see before it may be stopped
_FILES = 8  # at least so many files, or parts of a Parquet file, share them
_SHARE_BYTES = 64 * 2**20  # of a Parquet file, as stored
_READERS = 16  # Parquet footers read at once: a store answers each in tens of milliseconds
_Z = 1.96  # deviations to either end of a 95 % interval
_MARGIN_ALONE = 1.0  # of a ratio by a single cluster, which says nothing of how clusters differ
_FEW = 3  # clusters, up to which the same holds
# Characters of a token, where the endpoint's tokenizer is not known: about 4 of English, says
# https://help.openai.com/en/articles/4936856
_CHARACTERS = Range(3.0, 4.0, 5.0)

Piece = tuple[Source, tuple[int, int]]  # a file, (i, n): the i-th of n shares of it


@dataclass(frozen=True)
class Survey:
    """What a look at a corpus gave.

    Attributes:
        records: good records, duplicates among them.
        whole: whether all of it was read.
        sample: hash, id and text of the records read whose hashes are smallest, smallest first,
            with the piece of the corpus and the batch that each was read in.
    """

    records: Range
    whole: bool
    read: int
    sample: pa.Table

    def mean(self, values: NDArray[Any]) -> Range:
        """The mean over the corpus of what the sample's records have; NaN is left out.

        The sample is random among what was read. Where that is not all, its interval is that of
        what was read, file by file, as the records' is.
        """
        counted = ~np.isnan(values)
        values, rows = values[counted], self.sample.filter(pa.array(counted))
        if self.whole:
            return mean(values, self.records.expected)
        pieces = rows["piece"].to_numpy()
        of = pieces if len(np.unique(pieces)) > 1 else rows["batch"].to_numpy()
        clusters = [(int((of == one).sum()), values[of == one].sum()) for one in np.unique(of)]
        return ratio_total(clusters, 1.0)

    def drawn(self, size: int) -> NDArray[np.bool_]:
        """Which of the sample's records a run with `sample.size` `size` draws.

        Of a corpus read in part these are the ones below the hash that its share reaches, which
        is off by as much as the number of records is.
        """
        if self.whole:
            return np.arange(self.sample.num_rows) < size
        share = size / max(self.records.expected, size)
        return self.sample["hash"].to_numpy().astype(np.float64) < share * HASHES


def survey(corpus: Corpus, seed: int, size: int, limit: int = _READ_BYTES) -> Survey:
    """Read up to about `limit` bytes of text, from files in random order.

    The records of what was not read are taken to be as many for each byte, or for each row where
    the footers of Parquet files count them, as of what was read. The interval is that of a ratio
    over clusters, which are the files (Cochran, Sampling Techniques, 1977, ch. 6), or where it is
    a single file, its batches.

    Args:
        seed: of the run's sample.
        size: rows of the sample, at most.
    """
    pieces = _pieces(corpus)
    order = np.random.default_rng(seed).permutation(len(pieces))
    compressed = any(corpus.sources[0].uri.lower().endswith(suffix) for suffix in COMPRESSIONS)
    plain = corpus.format != "parquet" and not compressed  # no file has more text than bytes
    # A reader's buffer blurs how far it is in a compressed file: these are read to their ends
    all_fits = compressed or (plain and corpus.bytes <= limit)
    share = limit if all_fits else limit // min(_FILES, len(pieces))
    reading = _Reading(seed, size)
    for at in order:
        if reading.bytes >= limit:
            reading.whole = False
            break
        reading.read(corpus, pieces[at], min(share, limit - reading.bytes))
    records = Range.exactly(reading.good)
    if not reading.whole:
        total = _rows(corpus) if corpus.format == "parquet" else corpus.bytes
        records = ratio_total(reading.clusters, total)
    return Survey(records, reading.whole, reading.seen, reading.sample)


def _pieces(corpus: Corpus) -> list[Piece]:
    shares = {
        source: -(-source.size // _SHARE_BYTES) or 1 if corpus.format == "parquet" else 1
        for source in corpus.sources
    }
    return [(source, (i, n)) for source, n in shares.items() for i in range(n)]


class _Reading:
    """The sums of what has been read.

    A cluster is a size (rows of Parquet, else bytes of the file) and the good records in it.
    """

    def __init__(self, seed: int, size: int) -> None:
        self.seen = self.good = self.bytes = 0
        self.whole = True
        self._seed, self._most = seed, size
        self.sample = self._hashed(pa.table({"id": pa.array([], pa.string()), "text": []}), 0, 0)
        self._pieces: list[tuple[int, int]] = []
        self._batches: list[tuple[int, int]] = []  # of the last piece

    @property
    def clusters(self) -> list[tuple[int, int]]:
        return self._pieces if len(self._pieces) > 1 else self._batches

    def read(self, corpus: Corpus, piece: Piece, limit: int) -> None:
        """Read one piece, up to about `limit` bytes of its records.

        A file's reader is a buffer ahead of its records, by how much is not known: from one of
        its steps to another it is as far ahead. So of a file that is not read to its end what
        lies between the second step and the last counts.
        """
        counts_rows = corpus.format == "parquet"
        marks = [(0, 0)] if counts_rows else []  # rows or bytes, and good records, so far
        used, rows, good, at, cut = 0, 0, 0, 0, False
        for table, position in read_positions(corpus, *piece):
            if used >= limit and len(marks) >= _MARKS:
                cut, self.whole = True, False
                break
            if position > at and not counts_rows:
                marks.append((at, good))
                at = position
            kept = table.filter(pc.is_null(table["refused"]))
            self._keep(self._hashed(kept, len(self._pieces), self.seen + rows))
            used += pc.sum(pc.binary_length(table["text"])).as_py() or 0
            rows, good = rows + table.num_rows, good + kept.num_rows
            if counts_rows:
                marks.append((rows, good))
        self.bytes, self.seen, self.good = self.bytes + used, self.seen + rows, self.good + good
        if not counts_rows:
            marks = marks[1:] if cut else [*(marks or [(0, 0)]), (piece[0].size, good)]
        self._batches = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(marks)]
        self._pieces.append((marks[-1][0] - marks[0][0], marks[-1][1] - marks[0][1]))

    def _hashed(self, good: pa.Table, piece: int, batch: int) -> pa.Table:
        rows = hashed(good, self._seed)
        for name, number in (("piece", piece), ("batch", batch)):
            rows = rows.append_column(name, pa.array(np.full(rows.num_rows, number)))
        return rows

    def _keep(self, rows: pa.Table) -> None:
        """Let `rows` into the sample, each id once."""
        if self.sample.num_rows == self._most:
            rows = rows.filter(pc.less(rows["hash"], self.sample["hash"][-1]))
        if not rows.num_rows:
            return
        both = pa.concat_tables([self.sample, rows]).sort_by("hash")
        hashes = both["hash"].to_numpy()
        first = np.append(True, hashes[1:] != hashes[:-1])
        self.sample = both.filter(pa.array(first)).slice(0, self._most).combine_chunks()


def ratio_total(clusters: Sequence[tuple[float, float]], total: float) -> Range:
    """The good records in all, with a 95 % interval, by those of `clusters` (size, good).

    A single cluster has no interval: what it says is taken to hold within a factor of two. Two or
    three, by Student's, would say less than that, and are held to it.

    Args:
        total: the size of all, in the unit of the clusters' sizes.
    """
    from scipy.stats import t

    sizes, good = np.array(clusters, dtype=np.float64).reshape(-1, 2).T
    if not sizes.sum():
        return Range.exactly(0)
    ratio = good.sum() / sizes.sum()
    n, alone = len(sizes), Range.within(float(ratio) * total, _MARGIN_ALONE)
    if n == 1:
        return alone
    scatter = float(((good - ratio * sizes) ** 2).sum())
    half = float(t.ppf(0.975, n - 1)) * (n / (n - 1) * scatter) ** 0.5 / sizes.sum()
    low, high = (float(end) * total for end in (max(ratio - half, 0.0), ratio + half))
    if n <= _FEW:
        low, high = max(low, alone.low), min(high, alone.high)
    return Range(low, alone.expected, high)


def _rows(corpus: Corpus) -> int:
    """The rows of all Parquet files, by their footers; a file without one has none."""

    def rows(source: Source) -> int:
        with SourceFile(source.uri) as file:
            try:
                with file.decoding():
                    return int(pq.ParquetFile(pa.PythonFile(file, mode="r")).metadata.num_rows)
            except Unreadable:
                return 0

    with ThreadPoolExecutor(_READERS) as pool:
        return sum(pool.map(rows, corpus.sources))


def mean(values: NDArray[Any], population: float) -> Range:
    """The mean of a random sample of a population, with the normal 95 % interval."""
    if not len(values):
        return Range.exactly(0)
    at = float(values.mean())
    if len(values) < 2 or len(values) >= population:
        return Range.exactly(at)
    unseen = 1 - len(values) / population
    half = _Z * float(values.std(ddof=1)) * (unseen / len(values)) ** 0.5
    return Range(max(at - half, 0.0), at, at + half)


def encoder_tokens(
    model: str, max_length: int, trust_remote_code: bool, texts: list[str]
) -> NDArray[np.float64]:
    """The number of tokens of each text, as the encoder reads it in training and labelling."""
    folder = local_folder(model, weights=False)
    tokenizer = load_tokenizer(folder, trust_remote_code)
    most = min(max_length, longest_text(folder, tokenizer, trust_remote_code))
    return np.array([len(tokens) for tokens in tokenize(tokenizer, texts, most)], float)


def llm_tokens(config: AnnotateConfig, task: TaskConfig, seen: Survey) -> tuple[Range, Range]:
    """Tokens of a prompt and of an answer, on average over the corpus.

    Of vllm the prompts are made as they will be, and an answer is taken to be a label. An
    endpoint's tokens are guessed from characters.

    Raises:
        UserError: the prompt does not suit the model.
    """
    texts = seen.sample["text"].to_pylist()
    if config.engine == "openai":
        chats = [messages(task, text[: config.openai.max_text_chars]) for text in texts]
        chars = np.array([sum(len(turn["content"]) for turn in chat) for chat in chats], float)
        characters = np.array([len(answer) for answer in _answers(config, task)])
        answer = mean(characters, len(characters)).over(_CHARACTERS)
        return seen.mean(chars).over(_CHARACTERS), _answer(answer, config)
    from transformers.utils import logging

    from llambert.engines.vllm import prompt_builder

    logging.set_verbosity_error()  # of texts beyond the window, which are cut
    builder, counts = prompt_builder(config, task), np.full(len(texts), np.nan)
    for i, text in enumerate(texts):
        try:
            counts[i] = len(builder.build(text).token_ids)
        except ControlTokenError:  # the run refuses it likewise
            continue
    tokenizer = load_tokenizer(config.model or "", config.trust_remote_code)
    answers = _answers(config, task)
    lengths = [len(tokenizer(each, add_special_tokens=False).input_ids) for each in answers]
    return seen.mean(counts), _answer(mean(np.array(lengths), 0), config)


def _answers(config: AnnotateConfig, task: TaskConfig) -> list[str]:
    """The shortest answers that have a label."""
    if config.parse != "json":
        return list(task.labels)
    return [json.dumps({"label": label}, ensure_ascii=False) for label in task.labels]


def _answer(shortest: Range, config: AnnotateConfig) -> Range:
    """Tokens of an answer: the shortest and the token that ends it, or all that it may have."""
    low, expected, _ = shortest.plus(Range.exactly(1)).at_most(config.max_tokens)
    return Range(low, expected, config.max_tokens)
