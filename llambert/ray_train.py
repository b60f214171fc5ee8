"""Ray Train: workers run to the end, begun again from the last checkpoint where one was lost."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llambert.errors import LlambertError, StageError, UserError
from llambert.storage import Folder, arrow_filesystem

CHECKPOINTS = "_checkpoints"  # in a model's folder, until it is finished

# What a worker that is begun again raises again. A lost worker, and what its loss does to the
# others, is none of these.
_LASTING = (
    *(AssertionError, AttributeError, ImportError, LookupError, TypeError),
    ValueError,  # a UserError is one
)


def run_workers(job: Any, name: str, scaling: dict[str, Any], max_failures: int) -> dict[str, Any]:
    """Run `finetune` in Ray Train's workers; returns what rank 0's returned.

    Args:
        job: finetune.Job.
        name: of the training: checkpoints under another name are removed.
        scaling: the arguments of Ray Train's ScalingConfig.
        max_failures: lost workers, and failures that may pass, after which it is given up.

    Raises:
        UserError: a worker's own.
        StageError: the workers failed for another reason.
    """
    import ray.train
    from ray.train.torch import TorchTrainer

    from llambert.finetune import finetune

    checkpoints = job.folder / CHECKPOINTS
    _discard_unusable(checkpoints, name)
    filesystem, path = arrow_filesystem(checkpoints.uri)
    trainer = TorchTrainer(
        finetune,
        train_loop_config={"job": job},
        scaling_config=ray.train.ScalingConfig(**scaling),
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=filesystem,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    _leave_out_callbacks(trainer)
    _give_up_on_lasting_errors(trainer)
    with _interrupts_as_before():
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _failure(error, max_failures) from error
        except SystemExit as stopped:  # Ray Train's answer to Ctrl-C, as if all had gone well
            raise KeyboardInterrupt from stopped
    return dict(result.return_value)


def _leave_out_callbacks(trainer: Any) -> None:
    """Train without two of Ray Train's actors, which would only be waited for.

    `PlacementGroupCleaner` frees the workers of a driver that lives on after its controller has
    died; this driver ends then, which frees them. At the end of a training it is waited for until
    it has asked the dashboard, of which a Ray on one machine has none: 12 s. `DatasetManager` deals
    out datasets, of which a trainer here has none either.
    """
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import (
        PlacementGroupCleanerCallback,
    )

    made = trainer._create_default_callbacks
    unused = (PlacementGroupCleanerCallback, DatasetsCallback)
    trainer._create_default_callbacks = lambda: [
        each for each in made() if not isinstance(each, unused)
    ]


def _give_up_on_lasting_errors(trainer: Any) -> None:
    """Begin a training again only where that may help; Ray Train does after every error."""
    start = trainer._initialize_and_run_controller
    policy = failure_policy(trainer.run_config.failure_config)
    trainer._initialize_and_run_controller = lambda **options: start(
        **options | {"failure_policy": policy}
    )


def failure_policy(config: Any) -> Any:
    """Ray Train's failure policy, but for errors that another attempt would end in too.

    Args:
        config: Ray Train's FailureConfig.
    """
    from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy

    class Policy(DefaultFailurePolicy):  # goes to the controller by value
        def _is_retryable_error(self, error: Any) -> bool:
            return super()._is_retryable_error(error) and not _lasts(error)

    return Policy(config)


def _discard_unusable(checkpoints: Folder, name: str) -> None:
    """Remove checkpoints of other settings, and a list of checkpoints that Ray Train would refuse.

    Ray Train resumes from whatever it finds under the run's name. It writes its list in place, so
    that a crash can tear it, and refuses the list of another Ray version.
    """
    import ray
    from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

    for other in checkpoints.folders():
        if other != name:
            (checkpoints / other).remove()
    run = checkpoints / name
    if not run.exists(CHECKPOINT_MANAGER_SNAPSHOT_FILENAME):
        return
    try:
        snapshot = run.read_json(CHECKPOINT_MANAGER_SNAPSHOT_FILENAME)
        named = {result["checkpoint_dir_name"] for result in snapshot["checkpoint_results"]}
        usable = snapshot["ray_version"] == ray.__version__ and named <= set(run.folders())
    except (ValueError, KeyError):
        usable = False
    if not usable:
        run.remove()


def _causes(error: Exception) -> list[Exception]:
    """What the workers raised, or how they were lost."""
    failures = getattr(error, "worker_failures", {})
    return [getattr(each, "_base_exc", each) for each in failures.values()]


def _lasts(error: Exception) -> bool:
    """Whether the workers would fail so again."""
    from ray.exceptions import RayError

    causes = _causes(error)
    lost = any(isinstance(cause, RayError) for cause in causes)
    return not lost and any(isinstance(cause, _LASTING) for cause in causes)


def _failure(error: Exception, max_failures: int) -> LlambertError:
    """The workers' own error where it is one of ours, else what they said."""
    causes = _causes(error)
    for cause in causes:
        if isinstance(cause, UserError):
            return cause
    if not causes:
        return StageError(f"fine-tuning failed: {error}", "run the same command again")
    said = "; ".join(sorted({f"{type(c).__name__}: {c}".strip()[:500] for c in causes}))
    if _lasts(error):
        return StageError(
            f"fine-tuning failed, as it would again: {said}",
            "mend what it names; the same command then goes on from the last checkpoint",
        )
    return StageError(
        f"fine-tuning failed and was begun again {max_failures} times, at last: {said}",
        "run the same command again to go on from the last checkpoint",
    )


@contextmanager
def _interrupts_as_before() -> Iterator[None]:
    """Ray Train replaces the handler of Ctrl-C and leaves its own behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
