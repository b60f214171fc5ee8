"""How many tokens of a forward pass give most throughput on this device: measured, remembered."""

import importlib.metadata
import math
import time
from collections.abc import Sequence
from typing import Any

from llambert.encoder import machine_cache
from llambert.forward import Forward, Tokens
from llambert.storage import Folder, fingerprint

_CANDIDATES = {"cpu": (1024, 8192), "cuda": (8192, 1048576)}  # least and most tokens, by doubling
_REPEATS = 3
_ENOUGH_S = 10.0  # no larger budget is tried after so long
# A larger budget must be faster by this: on a CPU it also costs memory and page faults that copies
# of one sequence do not show.
_GAIN = {"cpu": 1.05, "cuda": 1.02}
_MEMORY_SHARE = 0.9  # of the device's
# By so many starts, of which each budget's best counts: others may have disturbed.
_MEASUREMENTS = 3


def find_budget(forward: Forward, config: Any, longest: Tokens) -> int:
    """The smallest budget, in tokens, of a throughput within a few per cent of the best.

    Budgets double from a small one for as long as that pays; each is measured on copies of
    `longest`, for long sequences take most memory. A machine remembers the result, in the folder
    `budgets` of `machine_cache()`, for each shape of model, length, device, dtype and version of
    PyTorch and this package. The first few starts measure, for a single one may have been slowed
    down by what started beside it.

    Args:
        config: the model's Hugging Face config.
        longest: a sequence of as many tokens as records may have.
    """
    device, known = _device_name(forward), Folder(machine_cache()) / "budgets"
    shape = {name: value for name, value in config.to_dict().items() if isinstance(value, int)}
    software = [importlib.metadata.version(name) for name in ("llambert", "torch")]
    of_forward = [device, str(forward.dtype), forward.padded]
    key = fingerprint([config.model_type, shape, *of_forward, len(longest), software])
    before: dict[str, Any] = {"rates": {}, "measured": 0}
    if known.exists(f"{key}.json"):
        before = known.read_json(f"{key}.json")
    if before["measured"] >= _MEASUREMENTS:
        return int(before["batch_tokens"])
    rates = {int(budget): rate for budget, rate in before["rates"].items()}
    for budget, rate in measure(forward, longest).items():
        rates[budget] = max(rate, rates.get(budget, 0.0))
    gain = _GAIN[forward.device.type]
    best = min(budget for budget, rate in rates.items() if rate * gain >= max(rates.values()))
    found = {"batch_tokens": best, "device": device, "rates": rates}
    known.write_json(f"{key}.json", found | {"measured": before["measured"] + 1})
    return best


def measure(forward: Forward, longest: Tokens) -> dict[int, float]:
    """Tokens per second under each budget that was tried, one at least, smallest first."""
    (least, most), gain = _CANDIDATES[forward.device.type], _GAIN[forward.device.type]
    rates: dict[int, float] = {}
    used: list[tuple[int, int]] = []  # tokens and bytes on the device, of each budget
    started, budget = time.monotonic(), least
    while budget <= most and (not rates or time.monotonic() - started < _ENOUGH_S):
        if not fits(used, budget, _memory(forward)):
            break
        count = max(budget // len(longest), 1)
        try:
            seconds, peak = _timed(forward, [longest] * count)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or budget <= len(longest):
                raise
            if rates:
                break
            budget, most = budget // 2, budget // 2  # not even the smallest fits
            continue
        rates[budget] = count * len(longest) / seconds
        used.append((budget, peak))
        if max(list(rates.values())[-2:]) * gain < max(rates.values()):
            break  # two in a row were slower than one before
        budget *= 2
    return rates


def fits(used: Sequence[tuple[int, int]], budget: int, memory: float) -> bool:
    """Whether `budget` tokens should fit into `memory` bytes, by a line through the last two peaks.

    Args:
        used: tokens and peak bytes of the budgets measured, smallest first.
    """
    if len(used) < 2:
        return True
    (a, bytes_a), (b, bytes_b) = used[-2:]
    expected = bytes_b + (bytes_b - bytes_a) / (b - a) * (budget - b)
    return expected <= _MEMORY_SHARE * memory


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or a CPU."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error)
    # oneDNN does not tell why it could not make a primitive; a smaller batch asks less of it
    return isinstance(error, RuntimeError) and (
        "allocate memory" in said or "could not create a primitive" in said
    )


def _timed(forward: Forward, sequences: Sequence[Tokens]) -> tuple[float, int]:
    """The least seconds of a few passes, and the peak of the GPU's memory in bytes (CPU: 0)."""
    import torch

    on_gpu = forward.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    least = math.inf
    begun = time.monotonic()
    for _ in range(_REPEATS):
        started = time.perf_counter()
        forward(sequences).cpu()
        least = min(least, time.perf_counter() - started)
        if time.monotonic() - begun > _ENOUGH_S / _REPEATS:
            break
    return least, torch.cuda.max_memory_allocated() if on_gpu else 0


def _memory(forward: Forward) -> float:
    """Bytes on the GPU; no bound on a CPU, whose memory is shared."""
    import torch

    if forward.device.type != "cuda":
        return math.inf
    return torch.cuda.get_device_properties(forward.device).total_memory


def _device_name(forward: Forward) -> str:
    import torch

    if forward.device.type == "cuda":
        return torch.cuda.get_device_name(forward.device)
    return f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
