"""What is checked before a run spends anything: first without Ray, then against the cluster."""

from collections.abc import Iterable, Mapping

from llambert import cluster
from llambert.annotate import check as check_annotator
from llambert.annotate import required_resources as annotate_needs
from llambert.errors import UserError
from llambert.gold import check_not_empty
from llambert.pipeline import Pipeline
from llambert.step import check_writable
from llambert.tracking import check as check_tracking
from llambert.train import check as check_trainer
from llambert.train import required_resources as train_needs


def preflight(pipeline: Pipeline, stages: Iterable[str]) -> None:
    """Check, before Ray starts, what can be known without it.

    Raises:
        UserError: a path, column or model that does not exist, or no access to one; a gold
            set without a single record; no client or server of MLflow where it is to be told.
    """
    check_writable(pipeline.workdir)
    check_not_empty(pipeline.config.gold, pipeline.config.task, pipeline.gold)
    pending = [stage for stage in stages if not pipeline.done(stage)]
    if "annotate" in pending or "cascade" in pending:
        check_annotator(pipeline.config.annotate, pipeline.config.task)
    if "train" in pending:
        check_trainer(pipeline.config.train)
    if "tracking" in pending and pipeline.config.tracking:
        check_tracking(pipeline.config.tracking)


def check_resources(pipeline: Pipeline, stages: Iterable[str]) -> None:
    """Check that the connected cluster has what the stages that are not done need.

    Raises:
        UserError: the cluster is too small.
    """
    have = cluster.resources()
    needs = {
        "annotate": annotate_needs(pipeline.config.annotate, have),
        "cascade": annotate_needs(pipeline.config.annotate, have),
        "train": train_needs(pipeline.config.train, have),
    }
    for stage in [s for s in stages if s in needs]:
        if pipeline.done(stage):
            continue
        fits(stage, needs[stage], have)


def fits(what: str, needs: Mapping[str, float], have: Mapping[str, float]) -> None:
    """Check that a cluster that has `have` can hold `needs`.

    Raises:
        UserError: it cannot.
    """
    for kind, amount in needs.items():
        if amount > have.get(kind, 0):
            raise UserError(
                f"{what} needs {amount:g} {kind} and the cluster has {have.get(kind, 0):g}",
                f"lower what {what} asks for (tensor_parallel_size, workers), or use a larger "
                "cluster",
            )
