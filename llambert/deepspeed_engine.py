"""A model in a DeepSpeed engine, and out of it again as a Hugging Face folder."""

import json
import tempfile
from pathlib import Path
from typing import Any

from llambert.storage import Folder


def deepspeed_engine(
    model: Any,
    settings: dict[str, Any],
    steps: int,
    warmup_share: float,
    learning_rate: float,
    weight_decay: float,
) -> Any:
    """The model in a DeepSpeed engine, with AdamW and a linear warm-up and decay.

    The optimizer is torch's: DeepSpeed's own compile C++ when first used. A user's DeepSpeed
    file that brings an optimizer or a scheduler has its way. Frozen weights are left out.

    Args:
        settings: DeepSpeed's configuration; see `deepspeed_settings`.
        steps: optimizer steps of the whole training.
    """
    import deepspeed
    import torch

    # DeepSpeed would compile a shared-memory all-reduce for CPU workers; gloo does without.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trained if p.ndim > 1]
    others = [p for p in trained if p.ndim <= 1]  # biases and norms
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    options: dict[str, Any] = {"model_parameters": groups}
    if "optimizer" not in settings:
        options["optimizer"] = torch.optim.AdamW(
            groups, lr=learning_rate, weight_decay=weight_decay
        )
    if "scheduler" not in settings:
        warmup = warmup_steps(steps, warmup_share)
        options["lr_scheduler"] = lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate_share(step, steps, warmup)
        )
    engine, *_ = deepspeed.initialize(model=model, config=settings, **options)
    return engine


def warmup_steps(steps: int, share: float) -> int:
    """How many of `steps` optimizer steps the learning rate rises in."""
    return max(1, round(steps * share))


def rate_share(step: int, steps: int, warmup: int) -> float:
    """The share of the peak learning rate that optimizer step `step` (from 0) takes.

    It rises in a straight line to 1 at the last of `warmup` steps, and falls in another to 0 at
    the one after the last of `steps`.
    """
    falling = (steps - step) / max(1, steps - warmup)
    return max(0.0, min((step + 1) / warmup, falling, 1.0))


def export(engine: Any, tokenizer: Any, folder: Folder, rank: int) -> None:
    """Write the model as a Hugging Face folder in float32; ZeRO-3's shards are gathered."""
    import deepspeed

    module = engine.module
    partitioned = engine.zero_optimization_partition_weights()
    weights = {}
    for name, parameter in module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=partitioned):
            if rank == 0:
                weights[name] = parameter.detach().float().cpu().clone()
    if rank != 0:
        return
    saved = module.state_dict().keys()
    weights |= {name: b.cpu() for name, b in module.named_buffers() if name in saved}
    with tempfile.TemporaryDirectory(prefix="llambert-") as place:
        module.save_pretrained(place, state_dict=weights)
        tokenizer.save_pretrained(place)
        config = Path(place, "config.json")
        settings = json.loads(config.read_text()) | {"dtype": "float32"}  # not the engine's
        config.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
        folder.create()
        for file in Path(place).iterdir():
            folder.fs.put_file(str(file), folder.path(file.name))
