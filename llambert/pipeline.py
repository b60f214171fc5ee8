"""The stages in order: what each is made of, and how they are tied together."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import pyarrow as pa

from llambert import STAGES
from llambert.annotate import annotate, annotator_id, check_answered
from llambert.asked import LABELLED_GOLD, Asked, GoldTest
from llambert.cascade import LABELS, cascade
from llambert.config import RunConfig, dump
from llambert.corpus import inspect_corpus
from llambert.deepspeed_settings import user_file
from llambert.evaluate import MEASURES, Trained, evaluate, read_predictions
from llambert.gates import Gate, annotation_gates, evaluation_gates, training_gates
from llambert.gold import Gold, load_gold
from llambert.label import CHECKPOINT, label
from llambert.models import fingerprint_encoder, fingerprint_model
from llambert.parse import PARSER
from llambert.progress import Progress
from llambert.ray_train import CHECKPOINTS
from llambert.records import Corpus, Source, open_corpus
from llambert.report import FORMAT, report
from llambert.review import review
from llambert.sample import draw_sample
from llambert.step import Step, commit, made, once, output, versions
from llambert.storage import Manifest, Outcome, fingerprint, fingerprint_rows
from llambert.tracking import track
from llambert.train import train
from llambert.workdir import Workdir

_SOURCES = "sources.json"  # in the corpus stage's folder: the files as it found them


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
        self.seen: dict[Any, Step] = {}  # within one look at the artefacts
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
            "tracking": lambda: [self._tracking()],
        }

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of this run, in order: some are there only on request."""
        absent = [n for n in ("cascade", "review", "tracking") if getattr(self.config, n) is None]
        return tuple(stage for stage in STAGES if stage not in absent)

    def steps(self, stage: str) -> list[Step]:
        """The steps of `stage`, in order, as things stand now."""
        self.seen = {}
        return self._plans[stage]()

    def done(self, stage: str) -> bool:
        """Whether all of its steps are."""
        return all(step.state == "done" for step in self.steps(stage))

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
        check_answered(self.asked.records(), step.folder)

    def gates(self, stage: str) -> list[Gate]:
        """The gates after `stage`, which is done, held to what it made."""
        config = self.config.gates
        if not config.on(stage):
            return []
        step = self.steps(stage)[0]
        if stage == "annotate":
            gold = self.asked.annotated_gold()
            return annotation_gates(config, self.config.task.labels, step.folder, made(step), gold)
        best = self._best()
        assert best and best[0].unit
        if stage == "train":
            return training_gates(config, best[0].folder, best[1])
        return evaluation_gates(config, step.folder, made(step), *best[0].unit)

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

    @property
    def asked(self) -> Asked:
        """What annotate asks the LLM, and, once it is done, what it said."""
        folders = self.workdir.sample, self._annotate().folder
        return Asked(*folders, self.gold, self.config.annotate.gold_records)

    @cached_property
    def _gold_train(self) -> str:
        return fingerprint_rows(self.gold.train, "text", "label")

    @cached_property
    def _gold_test(self) -> str:
        return fingerprint_rows(self.gold.test, "text", "label")

    @cached_property
    def _gold_refused(self) -> dict[str, str]:
        """The gold records left out, as an input of what tells of them; {} where none are."""
        refused = self.gold.refused.to_pylist()
        return {"gold.refused": fingerprint(refused)} if refused else {}

    @once
    def _corpus(self) -> Step:
        sources = [vars(source) for source in self.corpus.sources]
        settings = [self.config.corpus.model_dump(), sources]
        folder, quarantine = self.workdir.corpus, self.workdir.quarantine

        def run(progress: Progress) -> Outcome:
            folder.write_json(_SOURCES, sources)
            return inspect_corpus(self.corpus, folder, quarantine, progress)

        return Step("corpus", "corpus", folder, run, settings=settings)

    @once
    def _sample(self) -> Step:
        config, corpus, folder = self.config.sample, self._corpus(), self.workdir.sample

        def run(progress: Progress) -> Outcome:
            good = made(corpus).counts["out"]
            outcome = draw_sample(config, self.corpus, corpus.folder, good, folder, progress)
            outcome.output = fingerprint_rows(folder.read_table("sample.parquet"), "id", "text")
            return outcome

        inputs = {"corpus": output(corpus)}
        return Step("sample", "sample", folder, run, inputs, config.model_dump())

    @once
    def _annotate(self) -> Step:
        config, task, sample = self.config.annotate, self.config.task, self._sample()
        folder = self.workdir.annotations(annotator_id(config, task))

        def run(progress: Progress) -> Outcome:
            records = self.asked.records()
            outcome = annotate(config, task, records, folder, progress, may_ask=self._may_ask)
            self.workdir.quarantine.write_table("gold.parquet", self.gold.refused)
            outcome.details["gold_refused"] = self.gold.refusals()
            outcome.details["to_train"] = self.asked.to_train()
            outcome.output = fingerprint_rows(
                folder.read_table("annotations.parquet"), "id", "label"
            )
            return outcome

        inputs = {"sample": output(sample), "gold": self._gold_test, **self._gold_refused}
        named: dict[str, Any] = {"annotate.parse": config.parse, "task.labels": task.labels}
        named["annotate.gold_records"] = config.gold_records
        settings = [annotator_id(config, task), *named.values(), PARSER]
        return Step("annotate", "annotate", folder, run, inputs, settings, named)

    def _to_train(self) -> str | None:
        """What annotate left to train on; with more gold records to answer it is the same."""
        manifest = self._annotate().manifest
        return manifest.details.get("to_train", manifest.output) if manifest else None

    def _train(self) -> list[Step]:
        wanted = set(self.config.variants)
        order = ["llambert"] if wanted & {"llambert", "combined"} else []  # combined begins there
        order += [variant for variant in ("baseline", "combined") if variant in wanted]
        seeds = self.config.train.seeds
        return [self._train_unit(variant, seed) for seed in seeds for variant in order]

    @once
    def _train_unit(self, variant: str, seed: int) -> Step:
        config, folder = self.config.train, self.workdir.model(variant, seed)
        labels = list(self.config.task.labels)
        start: str = config.model
        inputs: dict[str, str | None] = {"gold": self._gold_train}
        if variant == "llambert":
            inputs = {"annotate": self._to_train()}
        if variant == "combined":
            first = self._train_unit("llambert", seed)
            inputs["train"] = output(first)
            start = first.folder.uri

        def run(progress: Progress) -> Outcome:
            records: pa.Table = self.gold.train
            dropped: dict[str, int] = {}
            if variant == "llambert":
                records, dropped = self.asked.annotated_sample()
            progress.begin(None, f"{variant} seed {seed}")
            outcome = train(config, labels, records, start, seed, folder, progress)
            outcome.counts["in"] += sum(dropped.values())
            outcome.counts["dropped"] |= dropped
            outcome.output = fingerprint_encoder(folder)
            return outcome

        made_from = [self._encoder, user_file(config.deepspeed)]
        settings = [config.what_matters(), made_from, labels, variant, seed]
        parts = ("train", f"train {variant} seed {seed}", folder, run, inputs, settings)
        return Step(*parts, unit=(variant, seed), scratch=CHECKPOINTS)

    def curve_of(self) -> str:
        """What a learning curve stands on: one of other labels, gold or encoder is another's."""
        annotated, gold = self._to_train(), [self._gold_train, self._gold_test]
        labels = list(self.config.task.labels)
        return fingerprint(
            [annotated, gold, self._encoder, self.config.train.what_matters(), labels]
        )

    @cached_property
    def _encoder(self) -> str:
        return fingerprint_model(self.config.train.model)

    def _units(self, *variants: str) -> list[tuple[str, int, Step]]:
        """Variant, seed and step of the training steps of `variants`."""
        units = [(*step.unit, step) for step in self._train() if step.unit]
        return [unit for unit in units if unit[0] in variants]

    @once
    def _evaluate(self) -> Step:
        folder = self.workdir.evaluation
        units = self._units(*self.config.variants)

        def run(progress: Progress) -> Outcome:
            config, labels = self.config, list(self.config.task.labels)
            gold = self.gold.test, self.asked.annotated_gold()
            models = [Trained(variant, seed, step.folder.uri) for variant, seed, step in units]
            actors, trusted = config.label.actors(), config.train.trust_remote_code
            return evaluate(
                config.evaluate, labels, *gold, models, folder, progress, actors, trusted
            )

        gold = fingerprint([self._gold_train, self._gold_test])
        inputs: dict[str, str | None] = {"annotate": output(self._annotate()), "gold": gold}
        inputs |= {step.title: output(step) for _, _, step in units}
        settings = [self.config.evaluate.model_dump(), self.config.label.dtype, MEASURES]
        return Step("evaluate", "evaluate", folder, run, inputs, settings)

    def _best(self) -> tuple[Step, Manifest] | None:
        """The training step whose encoder labels; None until all of its variant are done."""
        units = [step for _, _, step in self._units(self.config.label_variant)]
        trained = [(step, manifest) for step in units if (manifest := step.manifest)]
        if len(trained) < len(units):
            return None
        # Where nothing was held back the first seed is taken
        return max(trained, key=lambda unit: unit[1].details["validation_accuracy"] or 0.0)

    @once
    def _label(self) -> Step:
        corpus, variant, best = self._corpus(), self.config.label_variant, self._best()
        model = best[1].output if best else None
        folder = self.workdir.labels(model or "unknown")
        settings = [self.config.label.what_matters(), variant]
        inputs = {"corpus": output(corpus), "train": model}

        def run(progress: Progress) -> Outcome:
            assert best is not None
            config, encoder = self.config.label, best[0].folder.uri
            records = self.corpus, corpus.folder, made(corpus).counts["out"]
            trusted = self.config.train.trust_remote_code
            return label(config, *records, encoder, step.fingerprint, folder, progress, trusted)

        parts = ("label", "label", folder, run, inputs, settings)
        step = Step(*parts, scratch=CHECKPOINT)
        return step

    @once
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
                self.asked.records(),
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
            return GoldTest(LABELLED_GOLD.empty_table(), {}, 0)
        return self.asked.gold_test(read_predictions(self.workdir.evaluation, *best[0].unit))

    @once
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

    @once
    def _report(self) -> Step:
        stages = self.stages[: self.stages.index("report")]
        steps = [step for stage in stages for step in self._plans[stage]()]
        folder = self.workdir.report
        curve, prices = self.workdir.measured_curve(self.curve_of()), self.config.plan.prices

        def run(progress: Progress) -> Outcome:
            config = self.config.model_dump(mode="json", exclude_none=True)
            return report(
                self.config.name,
                {step.title: (step.folder, made(step)) for step in steps},
                {"config": config, "commit": commit()},
                folder,
                [gate for stage in stages for gate in self.gates(stage)],
                self.workdir.plan_before(self.config.planned_for(self.corpus)),
                curve,
                prices,
            )

        inputs = {step.title: output(step) for step in steps} | self._gold_refused
        inputs["annotate.parse"] = self.config.annotate.parse  # the page has it
        shown = {"curve": curve, "gates": self.config.gates.model_dump(exclude_none=True)}
        shown["plan.prices"] = prices.model_dump(exclude_defaults=True)
        inputs |= {name: fingerprint(value) for name, value in shown.items() if value}
        return Step("report", "report", folder, run, inputs, FORMAT)

    def _tracking(self) -> Step:
        config, reported, folder = self.config.tracking, self._report(), self.workdir.tracking
        assert config is not None
        inputs = {"report": output(reported)}

        def run(progress: Progress) -> Outcome:
            name, text, key = self.config.name, dump(self.config), fingerprint([inputs, folder.uri])
            return track(config, name, self.config, text, reported.folder, key, progress)

        return Step("tracking", "tracking", folder, run, inputs, config.model_dump())
