"""DeepSpeed's configuration: ours, and the user's own file merged over it."""

import json
from typing import Any, Literal

from pydantic import Field, model_validator

from llambert.errors import UserError
from llambert.section import Location, Section
from llambert.storage import Folder

_BATCH_KEYS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
)
_OBJECTS = ("fp16", "bf16", "zero_optimization", "optimizer", "scheduler")  # or "auto"


class DeepSpeedConfig(Section):
    """How DeepSpeed spreads the training over the workers."""

    zero_stage: Literal[0, 1, 2, 3] = Field(
        2,
        description="What workers share out among them: 1 the optimizer's state, 2 also the "
        "gradients, 3 also the weights; 0 nothing.",
    )
    offload: Literal["none", "cpu"] = Field(
        "none", description="Keep the optimizer's state (at stage 3 the weights too) in CPU memory."
    )
    config: Location | None = Field(
        None,
        description="Your own DeepSpeed JSON file. It wins over the settings here, key by key; "
        '"auto" takes ours. Batch sizes and accumulation stay those of `train`.',
    )

    @model_validator(mode="after")
    def _offload_needs_a_stage(self) -> "DeepSpeedConfig":
        if self.offload == "cpu" and self.zero_stage == 0:
            raise ValueError("offload 'cpu' needs zero_stage 1, 2 or 3; it is 0")
        return self


def deepspeed_settings(
    config: DeepSpeedConfig,
    batch: dict[str, Any],
    auto: dict[str, Any],
    bfloat16: bool,
    gpu: bool,
) -> dict[str, Any]:
    """The dictionary for `deepspeed.initialize`.

    Merged key by key: what the user's file sets wins, and where it says "auto" it takes the value
    of `auto`, or DeepSpeed's own default where `auto` has none. Two things follow from it: fp16
    switched on in the file switches our bf16 off ("auto" does not), and without a GPU its Adam
    becomes torch's, since DeepSpeed's is compiled on first use.

    Args:
        batch: batch sizes, accumulation, clipping.
        auto: our values of the optimizer's and scheduler's parameters, by their DeepSpeed names.

    Raises:
        UserError: the user's file cannot be used; see `user_file`.
    """
    zero: dict[str, Any] = {"stage": config.zero_stage}
    if config.offload == "cpu":
        zero["offload_optimizer"] = {"device": "cpu"}
        if config.zero_stage == 3:
            zero["offload_param"] = {"device": "cpu"}
    ours = batch | {
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,  # torch's AdamW will do: nothing to compile
        "steps_per_print": 2**31,
    }
    theirs = _without_auto(user_file(config), auto)
    if bfloat16 and not theirs.get("fp16", {}).get("enabled"):
        ours["bf16"] = {"enabled": True}
    merged = _merged(ours, theirs)
    optimizer = merged.get("optimizer", {})
    if not gpu and optimizer.get("type", "").lower() in ("adam", "adamw"):
        optimizer["params"] = {"torch_adam": True} | optimizer.get("params", {})
    return merged


def user_file(config: DeepSpeedConfig) -> dict[str, Any]:
    """The user's DeepSpeed file; {} where there is none.

    Raises:
        UserError: no such file, not a JSON object, a part of it of the wrong type, or it sets what
            `train` sets.
    """
    path = config.config
    if path is None:
        return {}
    folder, _, name = path.rpartition("/")
    try:
        theirs = json.loads(Folder(folder or "/").read_bytes(name))
    except FileNotFoundError as error:
        raise UserError(
            f"train.deepspeed.config: there is no file {path!r}", "check the path"
        ) from error
    except OSError as error:
        raise UserError(
            f"train.deepspeed.config: cannot read {path!r}: {error}",
            "name a JSON file that this user may read",
        ) from error
    except ValueError as error:
        raise UserError(
            f"train.deepspeed.config: {path!r} is not JSON: {error}", "mend the file"
        ) from error
    if not isinstance(theirs, dict):
        raise UserError(
            f"train.deepspeed.config: {path!r} holds no JSON object",
            "see https://www.deepspeed.ai/docs/config-json",
        )
    for key in _BATCH_KEYS:
        if theirs.get(key, "auto") != "auto":
            raise UserError(
                f"train.deepspeed.config: {path!r} sets {key} to {theirs[key]!r}",
                'set train.batch_size and train.micro_batch_size, and "auto" in the file',
            )
    _check_types(theirs, path)
    return theirs


def _check_types(theirs: dict[str, Any], path: str) -> None:
    """Of the parts that we look into: DeepSpeed checks the others, when training begins."""

    def expect(right: bool, key: str, value: Any, what: str) -> None:
        if not right and value != "auto":
            raise UserError(
                f"train.deepspeed.config: {path!r} sets {key} to {value!r}, which is not {what}",
                "see https://www.deepspeed.ai/docs/config-json",
            )

    for key in _OBJECTS:
        expect(isinstance(theirs.get(key, {}), dict), key, theirs.get(key), "an object")
    for key in ("fp16", "bf16"):
        enabled = theirs[key].get("enabled", False) if isinstance(theirs.get(key), dict) else False
        expect(isinstance(enabled, bool), f"{key}.enabled", enabled, 'true, false or "auto"')
    optimizer = theirs.get("optimizer")
    if isinstance(optimizer, dict):
        kind, params = optimizer.get("type", ""), optimizer.get("params", {})
        expect(isinstance(kind, str), "optimizer.type", kind, "a name")
        expect(isinstance(params, dict), "optimizer.params", params, "an object")


def _without_auto(theirs: dict[str, Any], auto: dict[str, Any]) -> dict[str, Any]:
    """`theirs` with every "auto" replaced by our value, or left out where we have none."""
    kept: dict[str, Any] = {}
    for key, value in theirs.items():
        if isinstance(value, dict):
            kept[key] = _without_auto(value, auto)
        elif value != "auto":
            kept[key] = value
        elif key in auto:
            kept[key] = auto[key]
    return kept


def _merged(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    merged = dict(ours)
    for key, value in theirs.items():
        both = isinstance(value, dict) and isinstance(ours.get(key), dict)
        merged[key] = _merged(ours[key], value) if both else value
    return merged
