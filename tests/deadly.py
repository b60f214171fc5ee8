"""Ends vLLM's engine on a long prompt: `logits_processors: ["tests.deadly:Deadly"]`."""

from typing import Any

from vllm.v1.sample.logits_processor import LogitsProcessor

LONG = 200  # tokens of a prompt


class Deadly(LogitsProcessor):
    """Leaves the logits as they are."""

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        pass

    def is_argmax_invariant(self) -> bool:
        return True

    def apply(self, logits: Any) -> Any:
        return logits

    def update_state(self, batch_update: Any) -> None:
        added = batch_update.added if batch_update else []
        if any(len(prompt or []) > LONG for _, _, prompt, _ in added):
            raise RuntimeError("this prompt ends the engine")
