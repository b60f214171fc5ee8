"""The stages in order: what each is made of, and how they are tied together."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property, wraps
from typing import Any

import pyarrow as pa

from llambert import STAGES, cluster
from llambert.annotate import annotate, annotator_id, check_answered
from llambert.annotate import check as check_annotator
from llambert.annotate import required_resources as annotate_needs
from llambert.config import RunConfig, dump
from llambert.corpus import inspect_corpus
from llambert.deepspeed_settings import user_file
from llambert.errors import UserError
from llambert.evaluate import Trained, evaluate
from llambert.gold import Gold, check_not_empty, first_by_hash, load_gold, without
from llambert.label import CHECKPOINT, label
from llambert.progress import Progress
from llambert.records import Corpus, Source, open_corpus
from llambert.report import report
from llambert.sample import draw_sample
from llambert.schema import SAMPLE
from llambert.step import Step, commit, made, output, versions
from llambert.storage import Folder, Manifest, Outcome, Workdir, fingerprint, fingerprint_model
from llambert.train import NOT_IN_IDENTITY, train
from llambert.train import check as check_trainer
from llambert.train import required_resources as train_needs

# Settings that change how fast a stage runs and not what it makes.
_HOW_NOT_WHAT = {
    "train": NOT_IN_IDENTITY | {"workers"},
    "label": {"variant", "workers", "batch_tokens", "accelerator_type"},
}
_SOURCES = "sources.json"  # in the corpus stage's folder: the files as it found them
_PROBE = "_write_probe"
_ANNOTATED_GOLD = pa.schema(
    [
        *(pa.field(name, pa.string()) for name in ("id", "text", "gold", "label")),
        pa.field("confidence", pa.float32()),
    ]
)


def _once(make: Callable[..., Step]) -> Callable[..., Step]:
    """A method of `Pipeline` that makes each step once in one look at the artefacts."""

    @wraps(make)
    def remembered(pipeline: "Pipeline", *args: Any) -> Step:
        key = (make.__name__, *args)
        if key not in pipeline._seen:
            pipeline._seen[key] = make(pipeline, *args)
        return pipeline._seen[key]

    return remembered


class Pipeline:
    """The steps of one run; looks at the artefacts anew whenever it is asked."""

    def __init__(self, config: RunConfig, may_ask: bool = True) -> None:
        """
        Args:
            may_ask: whether annotate may ask the LLM; else it only parses what is stored.
        """
        self.config = config
        self.workdir = Workdir(config.workdir)
        self._may_ask = may_ask
        self._frozen = False
        self._seen: dict[Any, Step] = {}  # within one look at the artefacts
        self._plans: dict[str, Callable[[], list[Step]]] = {
            "corpus": lambda: [self._corpus()],
            "sample": lambda: [self._sample()],
            "annotate": lambda: [self._annotate()],
            "train": self._train,
            "evaluate": lambda: [self._evaluate()],
            "label": lambda: [self._label()],
            "report": lambda: [self._report()],
        }

    def steps(self, stage: str) -> list[Step]:
        """The steps of `stage`, in order, as things stand now."""
        self._seen = {}
        return self._plans[stage]()

    def preflight(self, stages: Iterable[str]) -> None:
        """Check, before Ray starts, what can be known without it.

        Raises:
            UserError: a path, column or model that does not exist, or no access to one; a gold
                set without a single record.
        """
        try:
            self.workdir.write_bytes(_PROBE, b"")
            self.workdir.fs.rm_file(self.workdir.path(_PROBE))
        except Exception as error:  # whatever the store's driver raises, the remedy is the same
            raise UserError(
                f"cannot write to the workdir {self.workdir.uri!r}: {error}",
                "name a folder or bucket that you may write to",
            ) from error
        check_not_empty(self.config.gold, self.config.task, self.gold)
        if "annotate" in stages and not all(s.state == "done" for s in self.steps("annotate")):
            check_annotator(self.config.annotate, self.config.task)
        if "train" in stages and not all(s.state == "done" for s in self.steps("train")):
            check_trainer(self.config.train)

    def check_resources(self, stages: Iterable[str]) -> None:
        """Check that the connected cluster has what the stages that are not done need.

        Raises:
            UserError: the cluster is too small.
        """
        have = cluster.resources()
        needs = {
            "annotate": annotate_needs(self.config.annotate, have),
            "train": train_needs(self.config.train, have),
        }
        for stage in [s for s in stages if s in needs]:
            if all(step.state == "done" for step in self.steps(stage)):
                continue
            for kind, amount in needs[stage].items():
                if amount > have.get(kind, 0):
                    raise UserError(
                        f"{stage} needs {amount:g} {kind} and the cluster has "
                        f"{have.get(kind, 0):g}",
                        f"lower what {stage} asks for (tensor_parallel_size, workers), or use a "
                        "larger cluster",
                    )

    def write_config(self) -> None:
        """Leave the resolved run file, with versions and commit, in the workdir."""
        made_by = [f"# {package} {version}" for package, version in versions().items()]
        text = "\n".join([*made_by, f"# commit {commit()}", dump(self.config)])
        self.workdir.write_bytes("config.yaml", text.encode())

    def check_answered(self) -> None:
        """Check that every record to annotate has a stored answer.

        Raises:
            UserError: some have none.
        """
        (step,) = self.steps("annotate")
        step.check_inputs()
        check_answered(self._to_annotate(), step.folder)

    def freeze(self) -> None:
        """From here on the corpus is what its stage found, whatever files arrive meanwhile."""
        self._frozen = True
        self.__dict__.pop("corpus", None)

    @cached_property
    def corpus(self) -> Corpus:
        corpus = open_corpus(self.config.corpus)
        if self._frozen and self.workdir.corpus.exists(_SOURCES):
            found = self.workdir.corpus.read_json(_SOURCES)
            corpus = replace(corpus, sources=tuple(Source(**each) for each in found))
        return corpus

    @cached_property
    def gold(self) -> Gold:
        return load_gold(self.config.gold, self.config.task)

    @cached_property
    def _gold_train(self) -> str:
        return _content(self.gold.train, "text", "label")

    @cached_property
    def _gold_test(self) -> str:
        return _content(self.gold.test, "text", "label")

    @_once
    def _corpus(self) -> Step:
        sources = [vars(source) for source in self.corpus.sources]
        settings = [self.config.corpus.model_dump(), sources]
        folder, quarantine = self.workdir.corpus, self.workdir.quarantine

        def run(progress: Progress) -> Outcome:
            folder.write_json(_SOURCES, sources)
            return inspect_corpus(self.corpus, folder, quarantine, progress)

        return Step("corpus", "corpus", folder, run, settings=settings)

    @_once
    def _sample(self) -> Step:
        corpus, folder = self._corpus(), self.workdir.sample

        def run(progress: Progress) -> Outcome:
            good = made(corpus).counts["out"]
            outcome = draw_sample(
                self.config.sample, self.corpus, corpus.folder, good, folder, progress
            )
            outcome.output = _content(folder.read_table("sample.parquet"), "id", "text")
            return outcome

        inputs = {"corpus": output(corpus)}
        return Step("sample", "sample", folder, run, inputs, self.config.sample.model_dump())

    @_once
    def _annotate(self) -> Step:
        config, task, sample = self.config.annotate, self.config.task, self._sample()
        folder = self.workdir.annotations(annotator_id(config, task))

        def run(progress: Progress) -> Outcome:
            records = self._to_annotate()
            outcome = annotate(config, task, records, folder, progress, may_ask=self._may_ask)
            self.quarantine_gold()
            outcome.details["gold_refused"] = self.gold.refusals()
            outcome.output = _content(folder.read_table("annotations.parquet"), "id", "label")
            return outcome

        inputs = {"sample": output(sample), "gold": self._gold_test}
        settings = [annotator_id(config, task), config.parse, task.labels, config.gold_records]
        return Step("annotate", "annotate", folder, run, inputs, settings)

    def quarantine_gold(self) -> None:
        """Leave the gold records that cannot be used in quarantine, with their reasons."""
        self.workdir.quarantine.write_table("gold.parquet", self.gold.refused)

    def _to_annotate(self) -> pa.Table:
        """The sample and the first gold test records by hash of id; each text, each id once.

        A gold record with the id of a sampled record and another text gets an id of its own.
        """
        records = self.workdir.sample.read_table("sample.parquet")
        chosen = first_by_hash(self.gold.test, self.config.annotate.gold_records)
        ids = set(records["id"].to_pylist())
        texts = set(records["text"].to_pylist())
        rows = [
            {"id": f"gold:{row['id']}" if row["id"] in ids else row["id"], "text": row["text"]}
            for row in chosen.to_pylist()
            if row["text"] not in texts
        ]
        return pa.concat_tables([records, pa.Table.from_pylist(rows, schema=SAMPLE)])

    def _train(self) -> list[Step]:
        wanted = set(self.config.variants)
        order = (
            ["llambert"] if wanted & {"llambert", "combined"} else []
        )  # combined goes on from it
        order += [variant for variant in ("baseline", "combined") if variant in wanted]
        seeds = self.config.train.seeds
        return [self._train_unit(variant, seed) for seed in seeds for variant in order]

    @_once
    def _train_unit(self, variant: str, seed: int) -> Step:
        config, folder = self.config.train, self.workdir.model(variant, seed)
        labels = list(self.config.task.labels)
        start: str = config.model
        inputs: dict[str, str | None] = {"gold": self._gold_train}
        if variant == "llambert":
            inputs = {"annotate": output(self._annotate()), "gold": self._gold_test}
        if variant == "combined":
            first = self._train_unit("llambert", seed)
            inputs["train"] = output(first)
            start = first.folder.uri

        def run(progress: Progress) -> Outcome:
            records: pa.Table = self.gold.train
            dropped: dict[str, int] = {}
            if variant == "llambert":
                records, dropped = self._annotated_sample()
            progress.begin(None, f"{variant} seed {seed}")
            outcome = train(config, labels, records, start, seed, folder, progress)
            outcome.counts["in"] += sum(dropped.values())
            outcome.counts["dropped"] |= dropped
            outcome.output = _weights(folder)
            return outcome

        made_from = [self._encoder, user_file(config.deepspeed)]
        settings = [_what(config, "train"), made_from, labels, variant, seed]
        title = f"train {variant} seed {seed}"
        return Step("train", title, folder, run, inputs, settings, unit=(variant, seed))

    @cached_property
    def _encoder(self) -> str:
        return fingerprint_model(self.config.train.model)

    def _units(self, *variants: str) -> list[tuple[str, int, Step]]:
        """Variant, seed and step of the training steps of `variants`."""
        units = [(*step.unit, step) for step in self._train() if step.unit]
        return [unit for unit in units if unit[0] in variants]

    def _annotated_sample(self) -> tuple[pa.Table, dict[str, int]]:
        """id, text, label of the sampled records to train on; how many are left out, and why."""
        answers = self._answers()
        sample = self.workdir.sample.read_table("sample.parquet")
        labels = pa.array([answers.get(key) for key in sample["id"].to_pylist()], pa.string())
        labelled = sample.append_column("label", labels).filter(labels.is_valid())
        kept = without(labelled, self.gold.test)
        dropped = {
            "no_label": sample.num_rows - labelled.num_rows,
            "in_gold_test": labelled.num_rows - kept.num_rows,
        }
        return kept, {reason: records for reason, records in dropped.items() if records}

    def _answers(self) -> dict[str, str | None]:
        """The label of each annotated record; None where the answer was rejected."""
        table = self._annotate().folder.read_table("annotations.parquet", ["id", "label"])
        return dict(zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True))

    @_once
    def _evaluate(self) -> Step:
        folder = self.workdir.evaluation
        units = self._units(*self.config.variants)

        def run(progress: Progress) -> Outcome:
            models = [Trained(variant, seed, step.folder.uri) for variant, seed, step in units]
            labels = list(self.config.task.labels)
            return evaluate(
                self.config.evaluate,
                labels,
                self.gold.test,
                self._annotated_gold(),
                models,
                folder,
                progress,
                trust_remote_code=self.config.train.trust_remote_code,
            )

        gold = fingerprint([self._gold_train, self._gold_test])
        inputs: dict[str, str | None] = {"annotate": output(self._annotate()), "gold": gold}
        inputs |= {step.title: output(step) for _, _, step in units}
        settings = self.config.evaluate.model_dump()
        return Step("evaluate", "evaluate", folder, run, inputs, settings)

    def _annotated_gold(self) -> pa.Table:
        """id, text, gold, label, confidence of the annotated records that have a gold label.

        They are found by their text: ids of different files may be the same by chance. A test
        record bears its own id, by which the encoders' labels are compared with it.
        """
        train = {row["text"]: row for row in self.gold.train.to_pylist()}
        test = {row["text"]: row for row in self.gold.test.to_pylist()}
        columns = ["id", "label", "confidence"]
        table = self._annotate().folder.read_table("annotations.parquet", columns)
        answers = {row["id"]: row for row in table.to_pylist()}
        rows = []
        for asked in self._to_annotate().to_pylist():
            known = test.get(asked["text"]) or train.get(asked["text"])
            if known:
                key = known["id"] if asked["text"] in test else f"train:{known['id']}"
                truth = {"id": key, "text": asked["text"], "gold": known["label"]}
                rows.append({**answers[asked["id"]], **truth})
        return pa.Table.from_pylist(rows, schema=_ANNOTATED_GOLD).sort_by("id")

    @_once
    def _label(self) -> Step:
        corpus, variant = self._corpus(), self.config.label_variant
        units = [step for _, _, step in self._units(variant)]
        trained = [(step, manifest) for step in units if (manifest := step.manifest)]
        ready = len(trained) == len(units)
        best = max(trained, key=_validation_accuracy) if ready else None
        model = best[1].output if best else None
        folder = self.workdir.labels(model or "unknown")
        settings = [_what(self.config.label, "label"), variant]
        inputs = {"corpus": output(corpus), "train": model}

        def run(progress: Progress) -> Outcome:
            assert best is not None
            return label(
                self.config.label,
                self.corpus,
                corpus.folder,
                made(corpus).counts["out"],
                best[0].folder.uri,
                step.fingerprint,
                folder,
                progress,
                trust_remote_code=self.config.train.trust_remote_code,
            )

        step = Step(
            *("label", "label", folder, run, inputs, settings),
            from_scratch=True,
            scratch=CHECKPOINT,
        )
        return step

    def _report(self) -> Step:
        steps = [step for stage in STAGES[:-1] for step in self._plans[stage]()]

        def run(progress: Progress) -> Outcome:
            done = {step.title: (step.folder, made(step)) for step in steps}
            return report(self.config.name, done, self.workdir.report)

        inputs = {step.title: output(step) for step in steps}
        return Step("report", "report", self.workdir.report, run, inputs)


def _validation_accuracy(trained: tuple[Step, Manifest]) -> float:
    """Of a trained model; 0 where nothing was held back, so that the first seed is taken."""
    return trained[1].details["validation_accuracy"] or 0.0


def _what(config: Any, stage: str) -> dict[str, Any]:
    """The settings that change what a stage makes."""
    return config.model_dump(exclude=_HOW_NOT_WHAT[stage])


def _weights(model: Folder) -> str:
    """A fingerprint of a model's weights."""
    with model.fs.open(model.path("model.safetensors"), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def _content(table: pa.Table, *columns: str) -> str:
    """A fingerprint of rows, whatever their order."""
    rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
    return fingerprint(sorted([str(value) for value in row] for row in rows))
