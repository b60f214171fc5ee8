"""What is checked before a run spends anything: first without Ray, then against the cluster."""

from collections.abc import Collection, Iterable, Mapping

from llambert import cluster
from llambert.annotate import check as check_annotator
from llambert.annotate import required_resources as annotate_needs
from llambert.cluster import KIND_OF_GPU
from llambert.errors import UserError
from llambert.gold import check_not_empty
from llambert.label import required_resources as label_needs
from llambert.pipeline import Pipeline
from llambert.step import check_writable
from llambert.tracking import check as check_tracking
from llambert.train import check as check_trainer
from llambert.train import required_resources as train_needs


def preflight(pipeline: Pipeline, pending: Collection[str]) -> None:
    """Check, before Ray starts, what can be known without it of the stages that are to be run.

    Raises:
        UserError: a path, column or model that does not exist, or no access to one; a gold
            set without a single record; no client or server of MLflow where it is to be told.
    """
    check_writable(pipeline.workdir)
    check_not_empty(pipeline.config.gold, pipeline.config.task, pipeline.gold)
    if "annotate" in pending or "cascade" in pending:
        check_annotator(pipeline.config.annotate, pipeline.config.task)
    if "train" in pending:
        check_trainer(pipeline.config.train)
    if "tracking" in pending and pipeline.config.tracking:
        check_tracking(pipeline.config.tracking)


def check_resources(pipeline: Pipeline, pending: Iterable[str]) -> None:
    """Check that the connected cluster has what the stages that are to be run need.

    Raises:
        UserError: the cluster is too small, or has no such GPU.
    """
    have, nodes = cluster.resources(), cluster.nodes()
    annotators = annotate_needs(pipeline.config.annotate, have)
    encoders = label_needs(pipeline.config.label, have)
    needs = {
        "annotate": annotators,
        "train": train_needs(pipeline.config.train, have),
        "evaluate": encoders,
        "label": encoders,
        "cascade": annotators,
    }
    for stage in [stage for stage in pending if stage in needs]:
        fits(stage, needs[stage], have, nodes)


def fits(
    what: str,
    workers: cluster.Workers,
    have: Mapping[str, float],
    nodes: Iterable[Mapping[str, float]],
) -> None:
    """Check that a cluster of `nodes`, which has `have` in all, can hold `workers`.

    Raises:
        UserError: it cannot: Ray would wait for ever.
    """
    for kind, each in workers.each.items():
        amount, there = each * workers.count, have.get(kind, 0)
        if amount > there and kind.startswith(KIND_OF_GPU):
            found = [
                name.removeprefix(KIND_OF_GPU) for name in have if name.startswith(KIND_OF_GPU)
            ]
            raise UserError(
                f"{what} asks for GPUs of kind {kind.removeprefix(KIND_OF_GPU)!r}, and the cluster "
                f"has {', '.join(sorted(found)) or 'none of a kind that Ray knows'}",
                "correct accelerator_type, or leave it out to take any GPU",
            )
        if amount > there:
            raise UserError(
                f"{what} needs {amount:g} {kind} and the cluster has {there:g}",
                f"lower what {what} asks for (tensor_parallel_size, workers, cpus_per_worker), or "
                "use a larger cluster",
            )
    held = workers.each.items()
    if workers.count and not any(all(n.get(k, 0) >= each for k, each in held) for n in nodes):
        raise UserError(
            f"a worker of {what} needs {_told(workers.each)} on one node, and none has as much",
            "lower cpus_per_worker, or use a cluster of larger nodes",
        )


def _told(resources: Mapping[str, float]) -> str:
    """Resources as a person reads them: 4 CPU, 1 GPU, accelerator_type:L40S."""
    return ", ".join(
        kind if kind.startswith(KIND_OF_GPU) else f"{amount:g} {kind}"
        for kind, amount in resources.items()
    )
