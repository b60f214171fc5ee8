"""The nightly job: labels what is new or changed in the corpus, and holds back what looks wrong.

The nights of a model lie in a folder of their own, each apart from the others, so that a night
costs what its own files cost however many there were before.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

import pyarrow as pa

from llambert import cluster
from llambert.config import RunConfig
from llambert.corpus import inspect_corpus
from llambert.drift import (
    Profile,
    labels_profile,
    reasons,
    refused,
    shifts,
    together,
)
from llambert.errors import NoFilesError, StageError, UserError
from llambert.label import CHECKPOINT, label, required_resources
from llambert.lease import Lease
from llambert.ledger import Entry, Ledger, entries
from llambert.nightly_model import encoder_version, find_model
from llambert.preflight import fits
from llambert.progress import Progress
from llambert.records import Corpus, Source, common_folder, open_corpus
from llambert.step import Step, check_writable, output, run_step, versions
from llambert.storage import Folder, Manifest, Outcome, fingerprint, list_files
from llambert.workdir import Workdir

PUBLISHED = "_SUCCESS"  # as Spark and Hadoop mark a folder that is whole, for sensors to wait for
DISCARDED = "_DISCARDED"  # the night's files are new again
_SOURCES = "sources.json"  # the night's files as they were when it began
_REFERENCE_NIGHTS = 7  # so that no weekday is missing


@dataclass(frozen=True)
class _Job:
    """A night to be done: its number and its files, frozen."""

    number: int
    corpus: Corpus  # of these files alone
    entries: list[Entry]
    files: dict[str, int]  # new, changed, unchanged


@dataclass(frozen=True)
class Night:
    """A night that has been done."""

    number: int
    folder: Folder
    manifest: Manifest

    @property
    def held(self) -> list[str]:
        """Why it is held back; empty where it is published."""
        return self.manifest.details["held"]


class Nights:
    """The nights of one model, in `workdir/nightly/<model>/`."""

    def __init__(self, config: RunConfig, model: str | None = None) -> None:
        """
        Args:
            model: Folder of the encoder; by default that of the run's variant and the seed that
                did best on its validation records.

        Raises:
            UserError: no such model, or one of other labels; no access to the workdir.
        """
        check_writable(Workdir(config.workdir))
        self._config = config
        self._model = find_model(config, model)
        self.folder = Workdir(config.workdir).nightly(self._model.id)
        self._ledger = Ledger(self.folder)

    @property
    def last(self) -> int:
        """The number of the last finished night; 0 where there is none."""
        return self._ledger.last_night()

    def waiting(self) -> list[int]:
        """The numbers of the nights that are held back, not published or discarded since."""
        manifest = self._night(self.last).manifest()
        known = manifest.details["waiting"] if manifest else []
        return [number for number in known if undecided(self._night(number))]

    def label(self, vanished: Callable[[list[str]], None]) -> Iterator[Night]:
        """Label the files that are new or changed; Ray is started only where there are any.

        A night that was killed goes on with its own files, if they are as they were, and what
        came since is a further night.

        Args:
            vanished: is told of files of a killed night that are there no more, once.

        Yields:
            The nights done now, each as soon as it is, up to two; or one alone that was killed when
            its labels were there, and held back with nobody told. One that is held back is the
            last: it is to be looked at first.

        Raises:
            UserError: another process is at it, the corpus is not to be read, or the cluster is
                too small for `label`.
            CountError: records were lost or doubled.
            StageError: the store failed, or the model was changed meanwhile.
        """
        with Lease(self.folder):
            if night := self._repair():
                yield night
                return
            corpus = self._corpus()
            if gone := self._vanished(corpus.sources if corpus else ()):
                vanished(gone)
            if corpus is None:
                self._night(self.last + 1).remove()
                return
            self._check_columns(corpus)
            resumed = self._unfinished(corpus)
            job = resumed or self._begin(corpus)
            if job is None:
                return
            with cluster.connection():
                have = cluster.resources()
                needs = required_resources(self._config.label, have)
                fits("the night", needs, have, cluster.nodes())
                night = self._do(job)
                yield night
                corpus = self._corpus() if resumed and not night.held else None
                if corpus and (further := self._begin(corpus)):
                    yield self._do(further)

    def _night(self, number: int) -> Folder:
        return self.folder / folder_name(number)

    def _numbers(self) -> list[int]:
        """Of the nights begun, in order."""
        found = [re.fullmatch(r"night-(\d+)", name) for name in self.folder.folders()]
        return sorted(int(match[1]) for match in found if match)

    def _corpus(self) -> Corpus | None:
        """The corpus; None where its files have all been moved away since they were labelled."""
        config = self._config.corpus
        # Of a corpus that was read before no file need be readable now
        ids = next((manifest.inputs.get("ids") for _, manifest in self._published()), None)
        try:
            return open_corpus(config, ids=ids)
        except NoFilesError:
            emptied = {path for path in config.paths if self._emptied(path)}
            if emptied.issuperset(config.paths):
                return None
            return open_corpus(config, without=emptied, ids=ids)

    def _emptied(self, path: str) -> bool:
        """Whether all files of one of the corpus' paths are gone since they were labelled.

        Raises:
            NoFilesError: it has none and never had: it may be a wrong one.
        """
        try:
            list_files([path])
        except NoFilesError:
            if self._ledger.knows(common_folder([path])):
                return True
            raise
        return False

    def _repair(self) -> Night | None:
        """Conclude a night killed before its last file; it is returned if it is held, undecided."""
        number = max(self._numbers(), default=0)
        folder = self._night(number)
        manifest = folder.manifest()
        if manifest is None or self._concluded(number, manifest):
            return None
        rows = [] if folder.exists(DISCARDED) else self._frozen(number)[1]
        self._conclude(number, rows, manifest)
        return Night(number, folder, manifest) if undecided(folder) else None

    def _check_columns(self, corpus: Corpus) -> None:
        kept = (n for n in reversed(self._numbers()) if not self._night(n).exists(DISCARDED))
        manifest = next((made for n in kept if (made := self._night(n).manifest())), None)
        if manifest and manifest.inputs["columns"] != _columns(corpus):
            raise UserError(
                f"the nights in {self.folder.uri!r} were labelled with another corpus.id, "
                "corpus.text or corpus.format, or, where ids are made, another corpus.path",
                "set these as they were, or give the nights that follow another workdir",
            )

    def _frozen(self, number: int) -> tuple[tuple[Source, ...], list[Entry], dict[str, Any]]:
        """The files of a night that was begun, as they were then, as in `_Job`, and all of it."""
        found = self._night(number).read_json(_SOURCES)
        sources, rows = [], []
        for each in found["sources"]:
            digest = each.pop("hash")
            source = Source(**each)
            sources.append(source)
            rows.append(Entry(source.uri, source.size, source.version, digest, number))
        return tuple(sources), rows, found

    def _unfinished(self, corpus: Corpus) -> _Job | None:
        """The night that was begun last, if it is not finished and its files are as they were.

        Its ids keep their type, whatever came since: those labelled are compared with the others.
        """
        if (number := self._begun()) is None:
            return None
        sources, rows, begun = self._frozen(number)
        if not set(sources) <= set(corpus.sources) or begun.get("columns") != _columns(corpus):
            return None
        corpus = replace(corpus, sources=sources, id_type=pa.type_for_alias(begun["ids"]))
        return _Job(number, corpus, rows, begun["files"])

    def _begun(self) -> int | None:
        """The number of a night that has chosen its files and is not finished, if there is one."""
        number = max(self._numbers(), default=0)
        begun = number > self.last and self._night(number).exists(_SOURCES)
        return number if begun else None

    def _vanished(self, sources: Sequence[Source]) -> list[str]:
        """Files of a night that was killed, by uri, that are not among `sources` any more."""
        number = self._begun()
        was = self._frozen(number)[0] if number is not None else ()
        return sorted({source.uri for source in was} - {source.uri for source in sources})

    def _begin(self, corpus: Corpus) -> _Job | None:
        """Choose and freeze the files of a further night; None where there are none."""
        changes = self._ledger.changes(corpus.sources)
        if changes.touched:
            self._ledger.write(changes.touched, self.last)
        chosen = sorted([*changes.new, *changes.changed], key=lambda source: source.uri)
        number = self.last + 1
        if not chosen:
            self._night(number).remove()
            return None
        rows = entries(chosen, number)
        files = {"new": len(changes.new), "changed": len(changes.changed)}
        files["unchanged"] = changes.unchanged
        self._night(number).remove()  # of a killed night whose files are not as they were
        pairs = zip(chosen, rows, strict=True)
        frozen = [{**vars(source), "hash": row.hash} for source, row in pairs]
        read = {"columns": _columns(corpus), "ids": str(corpus.id_type)}
        self._night(number).write_json(_SOURCES, {"files": files, **read, "sources": frozen})
        return _Job(number, replace(corpus, sources=tuple(chosen)), rows, files)

    def _do(self, job: _Job) -> Night:
        started = time.monotonic()
        folder = self._night(job.number)
        corpus, labels = self._steps(job)
        if encoder_version(self._model.folder) != self._model.version:
            raise StageError(
                f"the model {self._model.folder.uri!r} was changed while it labelled",
                "the same command labels the night anew; do not train in the meantime",
            )
        (folder / "labels" / CHECKPOINT).remove()
        manifest = Manifest(
            stage="nightly",
            fingerprint=labels.fingerprint,
            output=labels.output,
            counts=corpus.counts | {"out": labels.counts["out"]},
            seconds=round(time.monotonic() - started, 3),
            details={
                "files": job.files,
                "records_per_s": labels.details.get("records_per_s"),
                **self._judged(folder, corpus, job.number),
            },
            inputs={
                "model": self._model.id,
                "columns": _columns(job.corpus),
                "ids": str(job.corpus.id_type),
            },
            versions=versions(),
        )
        folder.finish(manifest)
        self._conclude(job.number, job.entries, manifest)
        return Night(job.number, folder, manifest)

    def _steps(self, job: _Job) -> tuple[Manifest, Manifest]:
        """What an ordinary run does with a corpus, with the night's files: corpus, label."""
        config, model, folder = self._config, self._model, self._night(job.number)

        def read(progress: Progress) -> Outcome:
            quarantine = folder / "quarantine"
            return inspect_corpus(job.corpus, corpus.folder, quarantine, progress)

        def classify(progress: Progress) -> Outcome:
            if not inspected.counts["out"]:  # not worth the start of a model
                labels.folder.remove()
                return Outcome({"in": 0, "out": 0, "dropped": {}})
            return label(
                config.label,
                job.corpus,
                corpus.folder,
                inspected.counts["out"],
                model.folder.uri,
                labels.fingerprint,
                labels.folder,
                progress,
                trust_remote_code=config.train.trust_remote_code,
            )

        sources = [vars(source) for source in job.corpus.sources]
        settings = [config.corpus.model_dump(), sources]
        corpus = Step("corpus", "corpus", folder / "corpus", read, settings=settings)
        inspected = _made(corpus, config.name)
        labels = Step(
            *("label", "label", folder / "labels", classify),
            inputs={"corpus": inspected.output, "train": model.id},
            settings=[config.label.what_matters(), model.version],
        )
        return inspected, _made(labels, config.name)

    def _judged(self, folder: Folder, corpus: Manifest, number: int) -> dict[str, Any]:
        """The night's profile, what it is compared with, and why it is held back, if it is."""
        night = labels_profile(folder / "labels", corpus.details["text_lengths"])
        bounds, held = self._config.nightly, []
        reference, name = self._reference()
        figures: dict[str, float] = {}
        if night.records < bounds.least_records:
            name = f"nothing: fewer than {bounds.least_records:,} records (nightly.least_records)"
        elif reference is None:
            name = "nothing: the model's folder has no figures of its training data"
        else:
            figures = shifts(night, reference)
            held = reasons(bounds, night, reference, name)
        held = [*refused(bounds, corpus.counts, corpus.details), *held]
        return {
            "profile": asdict(night),
            "compared_with": name,
            "shifts": figures,
            "held": held,
            "waiting": [*self.waiting(), *([number] if held else [])],
        }

    def _reference(self) -> tuple[Profile | None, str]:
        """What the night is compared with, and its name.

        The last published nights, once they have enough records together, else the training data.
        """
        found = {
            number: Profile(**manifest.details["profile"])
            for number, manifest in islice(self._published(), _REFERENCE_NIGHTS)
        }
        past = together(found.values())
        if past.records >= self._config.nightly.least_records:
            first, last = min(found), max(found)
            return past, f"night {last}" if first == last else f"nights {first} to {last}"
        return self._model.training, "the training data"

    def _published(self) -> Iterator[tuple[int, Manifest]]:
        """The nights that are published, the last one first."""
        for number in reversed(self._numbers()):
            night = self._night(number)
            if night.exists(PUBLISHED) and (manifest := night.manifest()):
                yield number, manifest

    def _concluded(self, number: int, manifest: Manifest) -> bool:
        decided = manifest.details["held"] or not undecided(self._night(number))
        return number <= self.last and bool(decided)

    def _conclude(self, number: int, rows: list[Entry], manifest: Manifest) -> None:
        """What follows a night's manifest; may be done twice."""
        self._ledger.write(rows, number)
        if not manifest.details["held"] and undecided(self._night(number)):
            self._night(number).write_bytes(PUBLISHED, b"")


def folder_name(number: int) -> str:
    return f"night-{number:04d}"


def undecided(night: Folder) -> bool:
    """Whether a finished night is held back and nobody has said what becomes of it."""
    return not (night.exists(PUBLISHED) or night.exists(DISCARDED))


def _columns(corpus: Corpus) -> str:
    """A fingerprint of how the files are read, and of what made ids are relative to."""
    one = corpus.sources[0]
    made = [one.uri.removesuffix(one.name)] if corpus.makes_ids else []
    return fingerprint([corpus.format, corpus.config.id, corpus.config.text, *made])


def _made(step: Step, run: str) -> Manifest:
    """The manifest of a step of `run`, which is done now unless it has been."""
    if output(step) is None:
        with Progress(step.stage, run=run) as progress:
            return run_step(step, progress)
    assert step.manifest
    return step.manifest
