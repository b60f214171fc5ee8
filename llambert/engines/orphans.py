"""vLLM's processes end with the one that started them, also where that was killed.

An engine core outlives an actor that gets SIGKILL, and keeps its memory and its GPU's, which the
same command would then lack. vLLM calls this in each of its processes: it is a plugin of the entry
point group vllm.general_plugins (pyproject.toml).
"""

import multiprocessing
import os
import threading

FOLLOW = "LLAMBERT_FOLLOW_PARENT"  # set for our engines: others in this environment are not ours


def follow_parent() -> None:
    """End this process as soon as the one that spawned it is gone."""
    parent = multiprocessing.parent_process()
    if parent is None or not os.environ.get(FOLLOW):
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()
