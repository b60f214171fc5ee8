"""How long a Ray Data execution takes once its actors are ready."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from ray import cloudpickle
from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback

_LOADING_S = 1800  # for the actors of one operator


class Clock(ExecutionCallback):
    """Ray Data makes one for each execution, and calls it in the driver."""

    seconds = 0.0  # of the execution that ended last

    def before_execution_starts(self, executor: Any) -> None:
        self._started = self._ended = time.perf_counter()

    def on_execution_step(self, executor: Any) -> None:
        self._ended = time.perf_counter()

    def after_execution_succeeds(self, executor: Any) -> None:
        Clock.seconds = self._ended - self._started  # without stopping the actors


@contextlib.contextmanager
def all_ready() -> Iterator[Callable[[], float]]:
    """Hold every Dataset executed in the block until its actors are ready.

    By default Ray Data reads while actors load. What follows reading, such as tokenizing, then has
    a start as long as the loading, and would be in no figure that leaves the loading out.

    Yields:
        The seconds of the execution that ended last: from all actors ready, nothing yet read, to
        the last task done, which where it writes is the last file. Of a pool of varying size, the
        actors that it starts with are waited for.
    """
    # A context goes to the workers, and they need not have this file
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    context = DataContext.get_current()
    before = context.wait_for_min_actors_s, context.custom_execution_callback_classes
    context.wait_for_min_actors_s = _LOADING_S
    context.custom_execution_callback_classes = [*before[1], Clock]
    Clock.seconds = 0.0
    try:
        yield _seconds
    finally:
        context.wait_for_min_actors_s, context.custom_execution_callback_classes = before


def _seconds() -> float:
    if not Clock.seconds:
        raise RuntimeError("no Dataset was executed to its end")
    return Clock.seconds
