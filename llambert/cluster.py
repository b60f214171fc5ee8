"""The connection to Ray: a cluster where RAY_ADDRESS names one, else this machine."""

import contextlib
import logging
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from llambert.errors import StageError, UserError

# Set for the driver and every worker. Usage statistics are a decision for the user to take.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_TRAIN_V2_ENABLED": "1",
    # How often Ray Train looks at its workers, by default every 2 s: a worker waits for the next
    # look with every checkpoint and at its end, which in a short training is most of the time.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # An actor that tells the workers of a preemption to come, on which ours do not act: they go on
    # from the last checkpoint, whatever ended them.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # How long to wait before a block is given to an actor again that does not answer, by doubling:
    # by Ray's own figures all of them fail within 6 s, and a node that is gone is known to be so
    # only after some 20 s.
    "RAY_task_actor_unavailable_retry_delay_base_ms": "4000",
    "RAY_task_actor_unavailable_retry_max_delay_ms": "30000",
}

# For a Ray that is started here: it begins without a worker for each core, which take a second of a
# core each to start, beside the driver's own start.
_LOCAL_ENVIRONMENT = {"RAY_prestart_worker_first_driver": "0"}

# The address of a Ray that this process or the run above it has started: its workers have the
# environment from there. Given to Ray instead, every worker starts Python twice.
_OWN = "LLAMBERT_OWN_RAY"
_LAUNCHED = "~/ray_bootstrap_config.yaml"  # what `ray up` leaves on the head node

# How much is written of what Ray's core thinks, and the value for next to nothing
LOG_LEVEL, QUIET = "RAY_BACKEND_LOG_LEVEL", "fatal"

_STARTS = 2  # attempts to start Ray: on a busy machine its processes may need longer than it waits

# Notices of what is as it should be: that the local cluster asks for a token, that our own
# progress line stands in for Ray Data's bars.
_CHATTY = (
    *("ray._private.authentication", "ray.data._internal.progress"),
    # which of several clusters ray.data.llm's ray.init would join, were this process not in ours
    "ray._private.services",
)

# Until an execution in which no block moves is given up. A block of a large encoder takes a core
# more than Ray's half an hour, and a GPU may have to be waited for longer than that.
_NO_PROGRESS_S = 6 * 3600.0
_INIT_DEATHS = 5  # of actors that load, one after another; Ray's default gives up at the first

KIND_OF_GPU = "accelerator_type:"  # a resource of a node; its name ends in the kind


@dataclass(frozen=True)
class Workers:
    """Workers that must all be there at once: how many, and what each holds on its node."""

    count: int
    each: dict[str, float]  # Ray's resources: CPU, GPU, accelerator_type:…


def kind_of_gpu(accelerator_type: str | None) -> dict[str, float]:
    """What Ray asks for beside the GPU where it is to be of one kind."""
    return {f"{KIND_OF_GPU}{accelerator_type}": 0.001} if accelerator_type else {}


@contextlib.contextmanager
def connection() -> Iterator[None]:
    """Connect this process to Ray for the length of the `with` block.

    Raises:
        UserError: RAY_ADDRESS names a cluster that does not answer or has another version, or is
            no address of a cluster.
        StageError: Ray did not start on this machine.
    """
    address = os.environ.get("RAY_ADDRESS")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    for name, value in (_ENVIRONMENT if address else _ENVIRONMENT | _LOCAL_ENVIRONMENT).items():
        os.environ.setdefault(name, value)
    _check_scheme(address or "")
    import ray

    # Ray would replace the caller's at every ray.init, of which ray.data.llm makes one more
    ray._private.utils.set_sigterm_handler = lambda handler: None
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        _init(address)
    except ConnectionError as error:
        raise UserError(
            f"no Ray cluster answers at RAY_ADDRESS={address!r}, or not to this process",
            "start it; if it was started with a token, as `ray start` does by itself, set "
            "RAY_AUTH_MODE=token here too, with the head node's ~/.ray/auth_token; or unset "
            "RAY_ADDRESS to run on this machine alone",
        ) from error
    except (ValueError, RuntimeError) as error:  # malformed, or of another version of Ray or Python
        if not address:
            raise
        raise UserError(
            f"cannot join the Ray cluster at RAY_ADDRESS={address!r}: {error}",
            "give host:port of its head node (port 6379 by default), and run the same versions of "
            "Ray and Python here as there",
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # that of Ray's core would print its stack
    _configure_ray_data()
    if not address:
        os.environ[_OWN] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        if not address:
            del os.environ[_OWN]
        ray.shutdown()


def _init(address: str | None) -> None:
    """Join the cluster at `address`, or start Ray here.

    Raises:
        StageError: Ray's own processes did not come up.
    """
    import ray

    own = not address or address == os.environ.get(_OWN)
    environment = {} if own else {name: os.environ[name] for name in _ENVIRONMENT}
    for attempt in range(1, _STARTS + 1):
        try:
            quiet = os.environ.get(LOG_LEVEL) == QUIET
            with _hushed() if quiet else contextlib.nullcontext():
                ray.init(
                    address=address or "local",  # by default Ray would join any on the machine
                    num_cpus=None if address else _cpus_here(),
                    log_to_driver=bool(os.environ.get("LLAMBERT_WORKER_LOGS")),
                    logging_level=logging.WARNING,
                    include_dashboard=None if address else False,
                    runtime_env={"env_vars": environment} if environment else None,
                )
            return
        except Exception as error:
            if type(error) is not Exception:  # a bare one: its processes did not come up in time
                raise
            ray.shutdown()
            if attempt == _STARTS:
                raise StageError(
                    f"Ray did not start on this machine, {_STARTS} times: {error}",
                    "is the machine very busy, or its memory or disk full? The same command tries "
                    "again",
                ) from error


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Without stderr: Ray's core, told how much to say, writes there first that it was told."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _cpus_here() -> int:
    """The CPUs for a Ray on this machine: those that a container may use, and at least two.

    A labelling that is resumed has a filter's actor beside the labeller.
    """
    from ray._private.utils import get_num_cpus

    return max(2, int(get_num_cpus(override_docker_cpu_warning=True)))


def _check_scheme(address: str) -> None:
    """Refuse what Ray takes in RAY_ADDRESS for other purposes than joining a cluster."""
    scheme, separator, _ = address.partition("://")
    if not separator:
        return
    if scheme in ("http", "https"):
        raise UserError(
            f"RAY_ADDRESS={address!r} is the address of a job server, not of a cluster",
            f"submit the run there with `ray job submit --address {address} -- llambert …`",
        )
    if scheme == "ray":
        raise UserError(
            f"RAY_ADDRESS={address!r}: Ray Client is not supported: a stage's driver must run on "
            "a machine of the cluster",
            "submit the run with `ray job submit --address http://HEAD:8265 -- llambert …`, or "
            "start it on a node of the cluster",
        )
    raise UserError(
        f"RAY_ADDRESS={address!r} is no address of a Ray cluster", "give host:port of its head node"
    )


def address() -> str:
    """The address of the connected cluster, for RAY_ADDRESS of another driver."""
    import ray

    return ray.get_runtime_context().gcs_address


def resources() -> dict[str, float]:
    """What the connected cluster has, or could grow to: CPU, GPU, memory in bytes, …

    A cluster that scales from nothing has no GPU until one is asked for, so that what its
    configuration allows counts as there.
    """
    import ray

    have, could = dict(ray.cluster_resources()), Counter[str]()
    for each, number in _growth():
        could.update({kind: number * amount for kind, amount in each.items()})
    return {kind: max(have.get(kind, 0), could[kind]) for kind in {**have, **could}}


def gpus(kind: str | None = None) -> int:
    """The GPUs, of one kind where it is named, that the cluster has or could grow to."""
    if kind is None:
        return int(resources().get("GPU", 0))
    counts = []
    for some in _nodes():
        of_kind = [(has, number) for has, number in some if KIND_OF_GPU + kind in has]
        counts.append(sum(number * has.get("GPU", 0) for has, number in of_kind))
    return int(max(counts))


def room(most: int, each: int, kind: str | None) -> int:
    """How many of `most` workers with `each` GPUs of that kind the cluster has or could grow to.

    All, where it has none for a single one: then there is no telling.
    """
    return min(most, gpus(kind) // each or most)


def device() -> str:
    """What models compute on: 'gpu' where the cluster has any or could grow to it, else 'cpu'."""
    return "gpu" if gpus() else "cpu"


def cpus_have(*features: str) -> bool:
    """Whether the CPUs of all nodes have one of the features, by Linux' names in /proc/cpuinfo.

    Of the nodes that are up; where none is, there is no telling, and the answer is no.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def has() -> bool:
        told = Path("/proc/cpuinfo")
        return told.exists() and not set(features).isdisjoint(told.read_text().split())

    task = ray.remote(num_cpus=0)(has)
    found = []
    for node in ray.nodes():
        if node["Alive"] and node["Resources"].get("CPU"):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
            found.append(task.options(scheduling_strategy=there).remote())
    return bool(found) and all(ray.get(found))


def nodes() -> list[dict[str, float]]:
    """What each node of the connected cluster has, and each kind of node that it could start."""
    here, could = _nodes()
    return [has for has, _ in here + could]


_Nodes = list[tuple[dict[str, float], int]]  # what a node has, and how many of it


def _nodes() -> tuple[_Nodes, _Nodes]:
    """The nodes that are there, and the kinds that could be started, with how many at most."""
    import ray

    return [(node["Resources"], 1) for node in ray.nodes() if node["Alive"]], _growth()


def _growth() -> _Nodes:
    """The kinds of node that the cluster could start, with how many at most.

    By the file of Ray's cluster launcher on the head node, where the drivers of jobs run: Ray
    2.60's autoscalers do not tell. Of other clusters, KubeRay's among them, nothing is known.
    """
    address, told = os.environ.get("RAY_ADDRESS"), Path(_LAUNCHED).expanduser()
    if not address or address == os.environ.get(_OWN) or not told.is_file():
        return []
    config = yaml.safe_load(told.read_text("utf-8"))
    most = config.get("max_workers", 0)
    groups = config.get("available_node_types", {}).values()
    counted = [(each.get("resources", {}), each.get("max_workers", most)) for each in groups]
    return [(has, number) for has, number in counted if number]


def node_cpus() -> list[int]:
    """The CPUs of each node of the connected cluster that has any."""
    import ray

    found = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return [cpus for cpus in found if cpus]


def even_share(nodes: list[int], workers: int) -> int:
    """The most CPUs that each of `workers` can have on `nodes` with so many CPUs; at least 1."""
    fits = [c for c in range(1, max(nodes, default=1) + 1) if sum(n // c for n in nodes) >= workers]
    return max(fits, default=1)


def _configure_ray_data() -> None:
    """How all our work with Ray Data differs from its defaults.

    The product draws its own progress; Ray Data's bars and notices would cover it.
    """
    from ray.data import DataContext

    context = DataContext.get_current()
    context.execution_no_progress_timeout_s = _NO_PROGRESS_S
    context.max_consecutive_actor_init_deaths = _INIT_DEATHS
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # They say nothing here, and one makes a placement group for an engine whenever it looks
    context.issue_detectors_config.detectors = []
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)  # a failure is told once, by the command line
