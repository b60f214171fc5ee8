"""The training loop that runs in every worker: DeepSpeed engine, batches, checkpoints, export.

A batch of `batch_size` records is drawn for all workers together and dealt out among them, so
that the same seed gives the same batches whatever the number of workers, and every record is
seen once an epoch by exactly one worker. Where a batch cannot be dealt out evenly (the last one
of an epoch, for instance) a worker with nothing to do computes a filler record of weight zero:
the gradient is the mean over the batch's own records.
"""

import contextlib
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from llambert.batching import length_grouped
from llambert.deepspeed_engine import deepspeed_engine, export
from llambert.encoder import (
    freeze,
    load_classifier,
    load_tokenizer,
    local_folder,
    longest_input,
    tokenize,
)
from llambert.errors import StageError
from llambert.forward import pad
from llambert.storage import Folder

_CLOCK_STEPS = 10  # optimizer steps between two looks at the clock for a checkpoint
_STATE = "llambert"  # our key in DeepSpeed's checkpoint

Rows = NDArray[np.int64]
_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know; the driver makes it."""

    model: str  # hub name or folder, also on an object store
    labels: list[str]  # the model's outputs, in this order
    records: Any  # Ray reference to a table: text, target (index in `labels`)
    training: Rows  # rows of `records` to learn from
    validation: Rows  # rows held back; may be empty
    label_weights: list[float]  # of a record's loss, by label
    batch_size: int  # records of an optimizer step, all workers together
    accumulation: int  # forward passes of a worker in an optimizer step
    epochs: int
    max_length: int  # tokens
    learning_rate: float
    weight_decay: float
    warmup_share: float
    freeze_encoder: bool
    seed: int
    deepspeed: dict[str, Any]
    checkpoint_every_s: float
    threads: int  # of a worker's CPU work
    folder: Folder  # where the model goes
    counter: Any  # progress.RayCounter
    trust_remote_code: bool = False


@dataclass
class _State:
    """How far the training is; travels in the checkpoint."""

    epoch: int = 0
    step: int = 0  # optimizer steps done in this epoch
    loss: float = 0.0  # summed over this epoch's steps
    tokens: int = 0  # seen in training, padding not counted
    cells: int = 0  # computed for them, padding and fillers counted
    seconds: float = 0.0  # spent in training steps
    validation_seconds: float = 0.0
    resumed: int = 0  # times the training went on from a checkpoint
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)


class _Part(NamedTuple):
    """One forward pass of one worker."""

    inputs: dict[str, Any]  # input_ids and attention_mask, (records, longest)
    targets: Any  # int64 (records,)
    weights: Any  # float32 (records,); zero for a filler
    tokens: int
    cells: int
    records: int


def finetune(config: dict[str, Any]) -> dict[str, Any]:
    """The function that Ray Train runs in each worker; `config` is {"job": Job}.

    Returns:
        The training's history and figures, as JSON; Ray Train keeps rank 0's.
    """
    import torch

    job: Job = config["job"]
    torch.set_num_threads(job.threads)
    return _Worker(job).run()


class _Worker:
    def __init__(self, job: Job) -> None:
        import ray
        import torch

        from llambert.onednn import train_linear_layers

        self.job = job
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        source = local_folder(job.model)
        self.tokenizer = load_tokenizer(source, job.trust_remote_code)
        torch.manual_seed(job.seed)  # of a new classification head
        model = load_classifier(source, job.labels, job.trust_remote_code)
        if job.freeze_encoder:
            freeze(model)
        if torch.backends.mkldnn.is_available():
            train_linear_layers(model)
        self.max_length = min(job.max_length, longest_input(model.config, self.tokenizer))
        self.tokenizer.model_max_length = self.max_length
        records = ray.get(job.records)
        self.texts = records["text"]
        self.targets = records["target"].to_numpy()
        # Grouping by characters needs no tokenization beforehand and pads hardly more.
        self.lengths = records["length"].to_numpy()
        self.weights = np.asarray(job.label_weights, dtype=np.float64)
        self.steps = math.ceil(len(job.training) / job.batch_size)  # of an epoch
        self.engine = deepspeed_engine(
            model,
            job.deepspeed,
            steps=self.steps * job.epochs,
            warmup_share=job.warmup_share,
            learning_rate=job.learning_rate,
            weight_decay=job.weight_decay,
        )
        self.state = self._resume()
        self.reader = ThreadPoolExecutor(1, "tokenize")

    def run(self) -> dict[str, Any]:
        job, state = self.job, self.state
        while state.epoch < job.epochs:
            self._train_epoch()
            figures = {
                "epoch": state.epoch + 1,
                "train_loss": round(state.loss / self.steps, 5),
                "seconds": round(state.seconds, 2),
            }
            if len(job.validation):
                figures |= self._evaluate()
                figures["validation_seconds"] = round(state.validation_seconds, 2)
            state.history.append(figures)
            if _is_best(state.history):
                state.best_epoch = state.epoch + 1
                export(self.engine, self.tokenizer, job.folder, self.rank)
            # The export comes before the checkpoint: a crash between the two repeats the epoch
            # and exports the same weights again.
            state.epoch, state.step, state.loss = state.epoch + 1, 0, 0.0
            self._checkpoint()
        return {
            "history": state.history,
            "best_epoch": state.best_epoch,
            "tokens": state.tokens,
            "padding_share": _padding(state),
            "seconds": round(state.seconds, 2),
            "resumed": state.resumed,
            "max_length": self.max_length,
        }

    def _train_epoch(self) -> None:
        import torch

        job, state = self.job, self.state
        rng = np.random.default_rng([job.seed, state.epoch])
        batches = length_grouped(self.lengths[job.training], job.batch_size, rng)
        # loss, tokens, cells
        sums = torch.zeros(3, dtype=torch.float64, device=self.engine.device)
        self.engine.train()
        saved = started = time.monotonic()
        for parts in self._ahead(self._training_parts, batches[state.step :]):
            # Seeding every step makes dropout a function of the position alone, so a training
            # that was interrupted draws the same numbers.
            place = np.random.SeedSequence([job.seed, state.epoch, state.step, self.rank])
            torch.manual_seed(int(place.generate_state(1, np.uint64)[0] >> 1))
            for part in parts:
                loss = (self._losses(part) * part.weights).sum()
                self.engine.backward(loss)
                self.engine.step()
                sums[0] += loss.detach() / (self.world * job.accumulation)
                sums[1] += part.tokens
                sums[2] += part.cells
            job.counter.add(sum(part.records for part in parts))
            state.step += 1
            if state.step % _CLOCK_STEPS == 0 and state.step < self.steps and self._due(saved):
                self._account(sums, started)
                self._checkpoint()
                saved = started = time.monotonic()
        self._account(sums, started)

    def _account(self, sums: Any, started: float) -> None:
        """Move the loss, tokens and cells of all workers, and the time, into the state."""
        from torch import distributed as dist

        self.state.seconds += time.monotonic() - started
        dist.all_reduce(sums)
        self.state.loss += float(sums[0])
        self.state.tokens += int(sums[1])
        self.state.cells += int(sums[2])
        sums.zero_()

    def _evaluate(self) -> dict[str, float]:
        """Loss, accuracy and mean confidence on the validation records; each counts once."""
        import torch
        from torch import distributed as dist

        started, rows = time.monotonic(), self.job.validation
        rows = rows[np.argsort(-self.lengths[rows], kind="stable")]
        size = 4 * self.job.batch_size  # there are no gradients to keep
        batches = [rows[i : i + size] for i in range(0, len(rows), size)]
        # loss, correct, confidence
        sums = torch.zeros(3, dtype=torch.float64, device=self.engine.device)
        self.engine.eval()
        with torch.no_grad():
            for part in self._ahead(self._validation_part, batches):
                logits = self._logits(part)
                right = (logits.argmax(dim=-1) == part.targets).double()
                sums[0] += (self._losses(part, logits) * part.weights).sum()
                sums[1] += (right * part.weights).sum()
                sums[2] += (logits.softmax(dim=-1).amax(dim=-1) * part.weights).sum()
        dist.all_reduce(sums)
        self.state.validation_seconds += time.monotonic() - started
        names = ("validation_loss", "validation_accuracy", "validation_confidence")
        return {name: round(float(s) / len(rows), 5) for name, s in zip(names, sums, strict=True)}

    def _logits(self, part: _Part) -> Any:
        return self.engine(**part.inputs).logits.float()

    def _losses(self, part: _Part, logits: Any = None) -> Any:
        """The cross entropy of each record, shape (records,)."""
        from torch.nn.functional import cross_entropy

        logits = self._logits(part) if logits is None else logits
        return cross_entropy(logits, part.targets, reduction="none")

    def _training_parts(self, positions: Rows) -> list[_Part]:
        """This worker's parts of the batch at `positions` of the training rows.

        DeepSpeed divides gradients by workers x accumulation; weights are multiplied by as much,
        so that the gradient is the weighted mean over the batch whatever the parts' sizes.
        """
        rows = self.job.training[positions]
        weights = self.weights[self.targets[rows]]
        weights = weights * (self.world * self.job.accumulation / weights.sum())
        dealt = deal(rows, weights, self.rank, self.world, self.job.accumulation)
        return [self._part(*each) for each in dealt]

    def _validation_part(self, rows: Rows) -> _Part:
        (dealt,) = deal(rows, np.ones(len(rows)), self.rank, self.world)
        return self._part(*dealt)

    def _part(self, rows: Rows, weights: NDArray[np.float64]) -> _Part:
        import torch

        tokens = tokenize(self.tokenizer, self.texts.take(rows).to_pylist(), self.max_length)
        device = self.engine.device
        inputs = pad(tokens, self.tokenizer.pad_token_id)
        real = np.flatnonzero(weights)
        return _Part(
            inputs={name: tensor.to(device) for name, tensor in inputs.items()},
            targets=torch.from_numpy(self.targets[rows]).to(device),
            weights=torch.from_numpy(weights.astype(np.float32)).to(device),
            tokens=sum(len(tokens[i]) for i in real),
            cells=inputs["input_ids"].numel(),
            records=len(real),
        )

    def _ahead(self, make: Callable[[_Item], _Made], items: Iterable[_Item]) -> Iterator[_Made]:
        """`make(item)` of each item, one item ahead of its use, in a thread."""
        waiting = None
        for item in items:
            following = self.reader.submit(make, item)
            if waiting:
                yield waiting.result()
            waiting = following
        if waiting:
            yield waiting.result()

    def _due(self, saved: float) -> bool:
        """Whether it is time for a checkpoint; rank 0's clock decides for all."""
        import torch
        from torch import distributed as dist

        due = time.monotonic() - saved >= self.job.checkpoint_every_s
        answer = torch.tensor([int(due)], device=self.engine.device)
        dist.broadcast(answer, src=0)
        return bool(answer.item())

    def _checkpoint(self) -> None:
        """Save weights, optimizer, schedule and position; every worker its own shard."""
        import ray.train

        with tempfile.TemporaryDirectory(prefix="llambert-") as folder:
            self.engine.save_checkpoint(
                folder, tag="state", client_state={_STATE: asdict(self.state)}
            )
            holds = any(path.is_file() for path in Path(folder).rglob("*"))
            checkpoint = ray.train.Checkpoint.from_directory(folder) if holds else None
            ray.train.report({"epoch": self.state.epoch}, checkpoint=checkpoint)

    def _resume(self) -> _State:
        """The state of the last checkpoint, weights and optimizer restored; else a fresh one."""
        import ray.train
        from ray.exceptions import RayError

        checkpoint = ray.train.get_checkpoint()
        state = _State()
        if checkpoint:
            with checkpoint.as_directory() as folder:
                path, extra = self.engine.load_checkpoint(folder, tag="state")
            if path is None:
                raise StageError(
                    f"DeepSpeed found no checkpoint in {checkpoint.path}",
                    "remove that folder: the same command then begins the training anew",
                )
            state = _State(**extra[_STATE])
            state.resumed += 1
        if self.rank == 0:  # an earlier attempt may have counted records that come again
            seen = state.step * self.job.batch_size + state.epoch * len(self.job.training)
            with contextlib.suppress(RayError):  # it is lost with its node
                self.job.counter.add(seen - self.job.counter.read()[0])
        return state


def _padding(state: _State) -> float | None:
    """The share of what was computed that is padding; None of a checkpoint that did not count."""
    return round(1 - state.tokens / state.cells, 4) if state.cells >= state.tokens > 0 else None


def deal(
    rows: Rows, weights: NDArray[np.float64], rank: int, world: int, passes: int = 1
) -> list[tuple[Rows, NDArray[np.float64]]]:
    """The rows, and their weights, that worker `rank` of `world` computes in each of its passes.

    A pass for which no row is left gets the batch's first row with weight zero: all workers must
    make the same number of passes.
    """
    hands = []
    for start in range(rank, world * passes, world):
        mine = slice(start, None, world * passes)
        filler = not len(rows[mine])
        hands.append((rows[:1], np.zeros(1)) if filler else (rows[mine], weights[mine]))
    return hands


def _is_best(history: list[dict[str, float]]) -> bool:
    """Whether the last epoch is the best: accuracy first, then loss; without validation, yes."""

    def quality(figures: dict[str, float]) -> tuple[float, float]:
        return figures["validation_accuracy"], -figures["validation_loss"]

    if "validation_accuracy" not in history[-1]:
        return True
    return all(quality(history[-1]) > quality(earlier) for earlier in history[:-1])
