"""The stages in order: what each is made of, and how they are tied together."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, wraps
from typing import Any

import pyarrow as pa

from llambert import STAGES
from llambert.annotate import annotate, annotator_id, check_answered
from llambert.asked import annotated_gold, annotated_sample, labels_by_id, to_annotate
from llambert.cascade import LABELLED_GOLD, LABELS, GoldTest, cascade
from llambert.config import RunConfig, dump
from llambert.corpus import inspect_corpus
from llambert.deepspeed_settings import user_file
from llambert.evaluate import PREDICTIONS, Trained, evaluate
from llambert.gold import Gold, first_by_hash, load_gold
from llambert.label import CHECKPOINT, label
from llambert.models import fingerprint_weights
from llambert.progress import Progress
from llambert.records import Corpus, Source, open_corpus
from llambert.report import CURVE, report
from llambert.review import review
from llambert.sample import draw_sample
from llambert.step import Step, commit, made, output, versions
from llambert.storage import Manifest, Outcome, fingerprint, fingerprint_model
from llambert.train import NOT_IN_IDENTITY, train
from llambert.workdir import Workdir

# Settings that change how fast a stage runs and not what it makes.
_HOW_NOT_WHAT = {
    "train": NOT_IN_IDENTITY | {"workers"},
    "label": {"variant", "workers", "cpus_per_worker", "batch_tokens", "accelerator_type"},
}
_SOURCES = "sources.json"  # in the corpus stage's folder: the files as it found them


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
            "cascade": lambda: [self._cascade()],
            "review": lambda: [self._review()],
            "report": lambda: [self._report()],
        }

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of this run, in order: some are there only on request."""
        absent = [name for name in ("cascade", "review") if getattr(self.config, name) is None]
        return tuple(stage for stage in STAGES if stage not in absent)

    def steps(self, stage: str) -> list[Step]:
        """The steps of `stage`, in order, as things stand now."""
        self._seen = {}
        return self._plans[stage]()

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
        """The sample and the first gold test records by hash of id."""
        sample = self.workdir.sample.read_table("sample.parquet")
        return to_annotate(sample, first_by_hash(self.gold.test, self.config.annotate.gold_records))

    def _annotations(self) -> pa.Table:
        columns = ["id", "label", "confidence"]
        return self._annotate().folder.read_table("annotations.parquet", columns)

    def _annotated_gold(self) -> pa.Table:
        return annotated_gold(self._to_annotate(), self._annotations(), self.gold)

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
                sample = self.workdir.sample.read_table("sample.parquet")
                records, dropped = annotated_sample(sample, self._annotations(), self.gold.test)
            progress.begin(None, f"{variant} seed {seed}")
            outcome = train(config, labels, records, start, seed, folder, progress)
            outcome.counts["in"] += sum(dropped.values())
            outcome.counts["dropped"] |= dropped
            outcome.output = fingerprint_weights(folder)
            return outcome

        made_from = [self._encoder, user_file(config.deepspeed)]
        settings = [what_matters(config, "train"), made_from, labels, variant, seed]
        title = f"train {variant} seed {seed}"
        return Step("train", title, folder, run, inputs, settings, unit=(variant, seed))

    @cached_property
    def _encoder(self) -> str:
        return fingerprint_model(self.config.train.model)

    def _units(self, *variants: str) -> list[tuple[str, int, Step]]:
        """Variant, seed and step of the training steps of `variants`."""
        units = [(*step.unit, step) for step in self._train() if step.unit]
        return [unit for unit in units if unit[0] in variants]

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

    def _best(self) -> tuple[Step, Manifest] | None:
        """The training step whose encoder labels; None until all of its variant are done."""
        units = [step for _, _, step in self._units(self.config.label_variant)]
        trained = [(step, manifest) for step in units if (manifest := step.manifest)]
        return max(trained, key=_validation_accuracy) if len(trained) == len(units) else None

    @_once
    def _label(self) -> Step:
        corpus, variant, best = self._corpus(), self.config.label_variant, self._best()
        model = best[1].output if best else None
        folder = self.workdir.labels(model or "unknown")
        settings = [what_matters(self.config.label, "label"), variant]
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

    @_once
    def _cascade(self) -> Step:
        settings = self.config.cascade
        assert settings is not None
        config, task, folder = self.config.annotate, self.config.task, self.workdir.cascade
        corpus, annotated, labelled = self._corpus(), self._annotate(), self._label()

        def run(progress: Progress) -> Outcome:
            return cascade(
                settings,
                self.corpus,
                corpus.folder,
                labelled.folder,
                made(labelled).counts["out"],
                self._gold_test_labelled(),
                self._to_annotate(),
                lambda records: annotate(
                    config, task, records, annotated.folder, progress, parsed=folder
                ),
                folder,
                progress,
            )

        steps = (annotated, self._evaluate(), labelled)
        inputs = {step.title: output(step) for step in steps}
        parsing = [annotator_id(config, task), config.parse, task.labels]
        return Step("cascade", "cascade", folder, run, inputs, [settings.model_dump(), parsing])

    def _gold_test_labelled(self) -> GoldTest:
        """What the encoder that labels, and annotate's LLM, made of the gold test records."""
        best = self._best()
        assert best is not None and best[0].unit is not None
        if not self.gold.test.num_rows:
            return GoldTest(LABELLED_GOLD.empty_table(), {})
        variant, seed = best[0].unit
        table = (self.workdir.evaluation / PREDICTIONS).read_table(f"{variant}-seed-{seed}.parquet")
        texts = self.gold.test.sort_by("id")["text"]  # the predictions are sorted likewise
        known = labels_by_id(self._annotated_gold())
        return GoldTest(table.append_column("text", texts), known)

    @_once
    def _review(self) -> Step:
        settings, folder = self.config.review, self.workdir.review
        assert settings is not None
        corpus, labelled = self._corpus(), self._label()
        second = self._cascade() if self.config.cascade else None
        names = list(self.config.task.labels)

        def run(progress: Progress) -> Outcome:
            return review(
                settings,
                self.corpus,
                corpus.folder,
                second.folder / LABELS if second else labelled.folder,
                made(labelled).counts["out"],
                made(second).details["answered"] if second else None,
                names,
                os.path.basename(labelled.folder.uri),
                folder,
                progress,
            )

        inputs = {step.title: output(step) for step in (labelled, second) if step}
        return Step("review", "review", folder, run, inputs, [settings.model_dump(), names])

    def _report(self) -> Step:
        steps = [step for stage in self.stages[:-1] for step in self._plans[stage]()]
        folder, curve = self.workdir.report, self.workdir / "curve"

        def run(progress: Progress) -> Outcome:
            done = {step.title: (step.folder, made(step)) for step in steps}
            config = self.config.model_dump(mode="json", exclude_none=True)
            settings = {"config": config, "commit": commit()}
            return report(self.config.name, done, settings, curve, folder)

        inputs = {step.title: output(step) for step in steps}
        measured = curve.read_json(CURVE) if curve.exists(CURVE) else None
        return Step("report", "report", folder, run, inputs, measured)


def _validation_accuracy(trained: tuple[Step, Manifest]) -> float:
    """Of a trained model; 0 where nothing was held back, so that the first seed is taken."""
    return trained[1].details["validation_accuracy"] or 0.0


def what_matters(config: Any, stage: str) -> dict[str, Any]:
    """The settings that change what a stage makes."""
    return config.model_dump(exclude=_HOW_NOT_WHAT[stage])


def _content(table: pa.Table, *columns: str) -> str:
    """A fingerprint of rows, whatever their order."""
    rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
    return fingerprint(sorted([str(value) for value in row] for row in rows))
