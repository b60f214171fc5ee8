"""Stage: the fine-tuned encoder labels every record of the corpus."""

import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from llambert import cluster
from llambert.classify import LIGHT_CPUS, RETRIES, label_rows, labelling_dtype, pool_size
from llambert.datasource import corpus_dataset
from llambert.errors import CountError, StageError
from llambert.progress import Progress
from llambert.records import Corpus
from llambert.section import Section, Variant
from llambert.storage import Folder, Outcome, arrow_filesystem

log = logging.getLogger(__name__)

CHECKPOINT = "_checkpoint"  # inside the folder, until the step is finished
# Of a corpus about so many blocks, between the sizes below, and some for each actor. Of a block of
# fewer bytes a good part are batches that are not full.
_BLOCKS, _BLOCKS_AN_ACTOR = 64, 8
_SMALLEST_BLOCK_BYTES, _SMALL_BLOCK_BYTES = 2**15, {"gpu": 2**21, "cpu": 2**17}
_LARGEST_BLOCK_BYTES = {"gpu": 32 * 2**20, "cpu": 4 * 2**20}  # seconds and minutes of work
# Which run the rows in the folder belong to, while it is not finished, and their precision
_RUN = "_run.json"


class LabelConfig(Section):
    """Labelling the corpus."""

    variant: Variant | None = Field(
        None, description="Variant that labels; by default combined, llambert or baseline."
    )
    workers: tuple[int, int] | None = Field(
        None,
        description="Least and most actors; by default 1 to one for each GPU, or core, that the "
        "text is enough for.",
    )
    cpus_per_worker: int | None = Field(
        None, ge=1, description="Threads of an actor without GPU; by default an even share."
    )
    accelerator_type: str | None = Field(
        None, description="Kind of GPU to use where the cluster has several, in Ray's spelling."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="auto: bfloat16 on GPUs, and where every CPU has AVX-512 BF16 or AMX; "
        "else float32.",
    )
    batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="Most tokens, padding included, of one forward pass; auto: measured on the "
        "device when a worker starts there first. Halved where the memory does not suffice. On "
        "CPUs most passes are filled up to a multiple of 32 tokens.",
    )
    probabilities: bool = Field(False, description="Write the probability of every label too.")

    def what_matters(self) -> dict[str, Any]:
        """The settings that change which labels there are, and not only how fast they come."""
        speed = {"workers", "cpus_per_worker", "batch_tokens", "accelerator_type"}
        return self.model_dump(exclude=speed | {"variant"})

    @property
    def setup(self) -> dict[str, Any]:
        """What the speed depends on beside the encoder, as JSON has it."""
        return self.model_dump(mode="json", exclude={"variant", "probabilities"})

    def actors(self) -> dict[str, Any]:
        """How the encoder is run, in the words of `label_rows`.

        What is decided at the start is open: `workers` may be None, and `dtype` 'auto'.
        """
        names = {"workers", "cpus_per_worker", "accelerator_type", "dtype"}
        budget = 0 if self.batch_tokens == "auto" else self.batch_tokens
        return self.model_dump(include=names) | {"batch_tokens": budget}

    @field_validator("workers")
    @classmethod
    def _range(cls, workers: tuple[int, int] | None) -> tuple[int, int] | None:
        if workers and not 1 <= workers[0] <= workers[1]:
            raise ValueError(f"{list(workers)} is no range: write [least, most], from 1 up")
        return workers


def required_resources(config: LabelConfig, have: Mapping[str, float]) -> cluster.Workers:
    """What the fewest actors hold on a cluster that has `have`; evaluate's are the same.

    A thread is held to be a core, although Ray is told of less.
    """
    gpu = have.get("GPU", 0) > 0
    each = {"GPU": 1.0} if gpu else {"CPU": float(config.cpus_per_worker or 1)}
    each |= cluster.kind_of_gpu(config.accelerator_type)
    return cluster.Workers(config.workers[0] if config.workers else 1, each)


def label(
    config: LabelConfig,
    corpus: Corpus,
    inventory: Folder,
    total: int,
    model: str,
    run: str,
    folder: Folder,
    progress: Progress,
    trust_remote_code: bool = False,
) -> Outcome:
    """Write a row of `schema.LABEL` to `folder` for every good record of the corpus.

    A run that was killed goes on where it stopped: Ray Data's checkpoint lies in the folder and
    commits together with each Parquet file, so that a record is labelled exactly once.

    Args:
        inventory: the corpus stage's folder: which duplicates are refused.
        total: good records of the corpus, which the rows written must equal.
        model: folder of the fine-tuned encoder.
        run: what the labels depend on; rows of another run in the folder are removed first.

    Raises:
        CountError: records were lost or doubled.
        StageError: a block ended every actor that it was given to.
    """
    dtype = _begin(config, run, folder)
    before = (folder / CHECKPOINT).row_count(skip=".pending.parquet")  # those were committed
    progress.begin(total, "labelling", done=before)
    workers = pool_size(model, config.workers, config.accelerator_type, corpus.bytes)
    started = time.monotonic()
    with _checkpoint(folder):
        rows = corpus_dataset(
            corpus,
            inventory,
            only_good=True,
            block_bytes=_block_bytes(corpus.bytes, workers[1]),
            cpus=LIGHT_CPUS,
        )
        labelled = label_rows(
            rows,
            model,
            progress.ray_counter(),
            probabilities=config.probabilities,
            trust_remote_code=trust_remote_code,
            **config.actors() | {"workers": workers, "dtype": dtype},
        )
        _write(labelled, folder)
    seconds = progress.since_first_report()  # before every file's rows are counted
    _check_count(folder, total)
    return Outcome(
        {"in": total, "out": total, "dropped": {}},
        {
            "records": total,
            "labelled_now": total - before,
            "workers": cluster.room(workers[1], 1, config.accelerator_type),
            "seconds": round(time.monotonic() - started, 3),
            "device": cluster.device(),
            "dtype": dtype,
            "setup": config.setup,
            **_speed(total - before, seconds, progress),
        },
    )


def _begin(config: LabelConfig, run: str, folder: Folder) -> str:
    """The dtype that the run labels in: as it began, whatever machines it goes on with.

    Labels without their checkpoint are what a kill left of a finished run that was being removed.
    """
    begun = folder.read_json(_RUN) if folder.exists(CHECKPOINT) and folder.exists(_RUN) else {}
    if begun.get("run") != run or "dtype" not in begun:
        if folder.exists(_RUN):
            folder.fs.rm_file(folder.path(_RUN))  # first: a kill in what follows must not leave it
        folder.remove()
        begun = {"run": run, "dtype": labelling_dtype(config.dtype)}
        folder.write_json(_RUN, begun)
    elif begun["dtype"] != (fastest := labelling_dtype(config.dtype)):
        log.warning(
            "labelling goes on in %s, as it began; here %s would be faster: label.dtype=%s begins "
            "anew in it",
            *(begun["dtype"], fastest, fastest),
        )
    return begun["dtype"]


def _write(labelled: Any, folder: Folder) -> None:
    from ray.exceptions import RayActorError

    filesystem, path = arrow_filesystem(folder.uri)
    light = {"num_cpus": LIGHT_CPUS}
    try:
        labelled.write_parquet(path, filesystem=filesystem, mode="append", ray_remote_args=light)
    except RayActorError as error:
        raise StageError(
            f"an actor died {RETRIES + 1} times at the same block: {error.error_msg.strip()}",
            "where the memory did not suffice, have fewer labellers (label.workers) or smaller "
            "batches (label.batch_tokens); the other labels are kept, and the same command goes on",
        ) from error


def _check_count(folder: Folder, total: int) -> None:
    written = folder.row_count()
    if written != total:
        folder.fs.rm_file(folder.path(_RUN))  # the next run begins anew
        raise CountError(
            f"{total:,} good records came in and {written:,} labels came out",
            "was the corpus changed, or a second run under way? The same command begins anew",
        )


def _speed(records: int, seconds: float | None, progress: Progress) -> dict[str, float]:
    """What labelling took in the seconds from the first actor ready to the last file written.

    Nothing where nothing was labelled now, or the count was lost with the node that kept it. The
    tokens of a block whose actor died over it are counted twice, for they were computed twice.
    """
    sums = progress.figures()
    if not records or not seconds or not sums or not sums.get("cells"):
        return {}
    return {
        "records_per_s": round(records / seconds, 3),
        "tokens": int(sums["tokens"]),
        "tokens_per_s": round(sums["tokens"] / seconds, 1),
        "padding_share": round(1 - sums["tokens"] / sums["cells"], 4),
        "device_seconds": round(sums["device_seconds"], 3),
    }


@contextmanager
def _checkpoint(folder: Folder) -> Iterator[None]:
    """Ray Data's checkpoint, for what is read and written in the `with` block.

    Ray only warns where it cannot keep one; here that is an error. Ray's newer reader of Parquet,
    by which it would load the checkpoint, lists files by an actor that it does not start again: a
    run that begins just after a node was lost would fail. The older one's tasks are repeated.
    """
    import ray
    from ray.data.checkpoint import CheckpointConfig

    filesystem, path = arrow_filesystem((folder / CHECKPOINT).uri)
    context = ray.data.DataContext.get_current()
    newer, context.use_datasource_v2 = context.use_datasource_v2, False
    context.checkpoint_config = CheckpointConfig(
        id_column="id",
        checkpoint_path=path,
        override_filesystem=filesystem,
        delete_checkpoint_on_success=False,
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*support checkpointing")
            yield
    finally:
        context.checkpoint_config = None
        context.use_datasource_v2 = newer


def _block_bytes(corpus_bytes: int, actors: int) -> int:
    """Bytes of text committed together: what a crash repeats, for each block in flight.

    Large enough that a large corpus does not become a great many files.
    """
    device = cluster.device()
    shared = corpus_bytes // (_BLOCKS_AN_ACTOR * actors)  # so that all have something to do
    least = min(max(shared, _SMALLEST_BLOCK_BYTES), _SMALL_BLOCK_BYTES[device])
    return min(_LARGEST_BLOCK_BYTES[device], max(least, min(shared, corpus_bytes // _BLOCKS)))
