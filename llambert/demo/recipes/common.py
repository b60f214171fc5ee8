"""What both recipes share: the tokenizer, the optimiser's course, the picture of the losses."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llambert.batching import length_grouped

_CORES = 2  # what the published models were trained on
_WEIGHT_DECAY = 0.01
_WARMUP_SHARE = 0.06  # of the steps
_SMOOTHED = 50  # steps whose losses make one point of the picture


def read_texts(path: str) -> list[str]:
    """The `text` column of a Parquet file."""
    return pq.read_table(path, columns=["text"])["text"].to_pylist()


def train_tokenizer(texts: Iterable[str], size: int, special: Sequence[str]) -> Any:
    """A byte-level BPE of `size` tokens that reads lower case and takes line breaks as spaces.

    Lower case halves what a model of few parameters has to learn. Special tokens are matched
    before that, as written.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"<br */?>"), " "), normalizers.Lowercase()]
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=5,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def first_embeddings(
    sequences: Sequence[Sequence[int] | NDArray[np.int32]],
    size: int,
    width: int,
    labels: Sequence[str] | None = None,
) -> NDArray[np.float32]:
    """Embeddings to begin with: what counting says of each token, before any gradient step.

    The columns are the token's place in the latent semantic space of the texts (truncated SVD of
    TF-IDF, Deerwester et al. 1990) and, with labels, its weight in a logistic regression on them.

    Returns:
        Shape (size, width), with the spread 0.02 of a model that starts from noise.
    """
    from scipy.sparse import csr_matrix
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.linear_model import LogisticRegression

    columns = np.concatenate([np.asarray(each) for each in sequences])
    starts = np.cumsum([0, *map(len, sequences)])
    counts = csr_matrix((np.ones(len(columns)), columns, starts), shape=(len(sequences), size))
    tfidf = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    svd = TruncatedSVD(width - 1, random_state=0).fit(tfidf)
    space = (svd.components_ * svd.singular_values_[:, None] ** 0.5).T
    space = 0.02 * space / (space.std(axis=0) + 1e-9)
    noise = np.random.default_rng(0).normal(0, 0.02, (size, width))
    found = noise * 0.3
    found[:, 1:] += space
    if labels is not None:
        weights = LogisticRegression(C=10.0, max_iter=300).fit(tfidf, labels).coef_[0]
        found[:, 0] = 0.1 * weights / weights.std()
    return found.astype(np.float32)


def start(seed: int) -> np.random.Generator:
    """Fix torch's seed and threads; the generator that shuffles batches."""
    import torch

    torch.manual_seed(seed)
    torch.set_num_threads(_CORES)
    return np.random.default_rng(seed)


def optimise(
    model: Any,
    lengths: NDArray[np.integer],
    loss_of: Callable[[NDArray[np.int64]], tuple[Any, tuple[float, float]]],
    rng: np.random.Generator,
    epochs: int,
    batch_size: int,
    learning_rate: float,
) -> Iterator[NDArray[np.float64]]:
    """Train with AdamW in bfloat16 products, with linear warm-up and decay.

    Args:
        lengths: tokens of each sequence, by which batches are grouped.
        loss_of: from the row numbers of a batch to its loss, and its two parts.

    Yields:
        After each epoch, the parts of the loss by step: shape (steps, 2), in nats.
    """
    import torch

    bare = {"bias", "norm", "embed"}  # no decay where a weight has no neighbours to be traded for
    groups: list[dict[str, Any]] = [{"params": []}, {"params": [], "weight_decay": 0.0}]
    for name, weight in model.named_parameters():
        groups[any(part in name.lower() for part in bare)]["params"].append(weight)
    optimiser = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=_WEIGHT_DECAY)
    steps = epochs * -(-len(lengths) // batch_size)
    rise = max(int(steps * _WARMUP_SHARE), 1)
    course = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / rise, max(steps - step, 0) / (steps - rise))
    )
    for _ in range(epochs):
        parts = []
        model.train()
        for rows in length_grouped(lengths, batch_size, rng):
            with torch.autocast("cpu", torch.bfloat16):
                loss, told = loss_of(rows)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            course.step()
            parts.append(told)
        yield np.array(parts)


def draw_losses(path: Path, names: tuple[str, str], parts: NDArray[np.float64]) -> None:
    """A small picture of both parts of the loss, (steps, 2), in means over 50 steps."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, panes = pyplot.subplots(1, 2, figsize=(6.4, 2.4))
    for pane, name, losses in zip(panes, names, parts.T, strict=True):
        pieces = np.array_split(losses, max(len(losses) // _SMOOTHED, 1))
        means = [piece.mean() for piece in pieces]
        pane.plot(np.cumsum([len(piece) for piece in pieces]), means, linewidth=1)
        pane.set_ylim(0, 1.1 * sorted(means)[int(0.95 * len(means))])  # the fall at first is cut
        pane.set_title(name, fontsize=9)
        pane.set_xlabel("step", fontsize=8)
        pane.set_ylabel("loss, nats", fontsize=8)
        pane.tick_params(labelsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
