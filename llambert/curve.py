"""`llambert curve`: how accuracy grows with the annotations, and what twice as many would bring.

    llambert/size-000200/seed-1/     one training: manifest.json with its accuracy, evaluation/
    curve.json  curve.svg            all of them, the law fitted to them, the next doubling

Every training is a step of its own, so that a curve that was stopped goes on where it was, and a
larger sample, another size or another seed adds only what is new.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import click
import pyarrow as pa

from llambert import cluster
from llambert.config import RunConfig
from llambert.curve_text import notes
from llambert.errors import UserError
from llambert.gates import Gate, check_passed
from llambert.gold import without
from llambert.held import devices, held
from llambert.lease import Lease
from llambert.measures import over_seeds
from llambert.pipeline import Pipeline
from llambert.plan import Range, estimate
from llambert.planner import asking
from llambert.power_law import LEAST_RECORDS, Point, doublings, look_ahead
from llambert.preflight import fits
from llambert.progress import Progress, duration
from llambert.rates import known_rates
from llambert.report_plots import curve_file
from llambert.sample import as_drawn
from llambert.schema import GOLD
from llambert.step import Step, check_writable, made, run_step
from llambert.storage import Manifest, Outcome
from llambert.train import check as check_trainer
from llambert.train import required_resources
from llambert.training_data import enough
from llambert.trial import Trials
from llambert.workdir import CURVE

_Trial = tuple[str, int, int]  # variant, records, seed
_Found = dict[_Trial, dict[str, Any]]  # the details of each training


class Curve:
    """The curve of one run file, whose run has annotated."""

    def __init__(self, config: RunConfig, gain: float) -> None:
        """
        Args:
            gain: accuracy (0..1) below which a doubling of the annotations is not worth it.

        Raises:
            UserError: no such gain, nothing is annotated, or a variant has too few records.
        """
        if not 0 < gain < 1:
            raise UserError(
                f"a doubling cannot bring {100 * gain:g} points of accuracy",
                "give --gain more than 0 and less than 100, as 0.5",
            )
        self._config, self._gain = config, gain
        self._pipeline = Pipeline(config)
        self.folder = self._pipeline.workdir.curve
        self._warnings: list[str] = []
        self._gates: list[Gate] = []
        gold, variants = self._pipeline.gold, [*map(str, config.curve.variants)]
        self._test = gold.test
        self.against = f"{gold.test.num_rows:,} gold test records"
        annotated = GOLD.empty_table()
        if "llambert" in variants or not gold.test.num_rows:
            annotated = self._annotated()
        if not gold.test.num_rows:
            # The first ones: once a fifth is more, a larger sample holds back the same
            held = min(config.curve.held_back, annotated.num_rows // 5)
            self._test, annotated = annotated.slice(0, held), annotated.slice(held)
            self.against = f"{held:,} of the LLM's own labels, held back as there is no gold"
        by_variant = {
            "llambert": without(annotated, self._test),
            # In the same order, so that on the same records only the labels differ
            "baseline": without(as_drawn(gold.train, config.sample.seed), self._test),
        }
        self._records = {variant: by_variant[variant] for variant in variants}
        self._sizes = {variant: self._sizes_of(variant) for variant in variants}

    def run(self, told: Callable[[int, str, dict[str, Any]], None]) -> dict[str, Any]:
        """Train and measure what is missing, and write curve.json and curve.svg.

        Args:
            told: called after each training with how many are to go, its title and its figures.

        Returns:
            The content of curve.json.

        Raises:
            UserError: the workdir or the encoder cannot be used, or the cluster is too small.
            GateError: the LLM's labels, where they are used, do not pass the run file's gates.
            StageError: a training failed.
        """
        check_writable(self._pipeline.workdir)
        trials = self._trials()
        done = {trial: step.manifest for trial, step in trials.items() if step.manifest}
        with Lease(self._pipeline.workdir):
            if len(done) < len(trials):
                check_passed(self._gates, self._pipeline.workdir.gates)
                check_trainer(self._config.train)
                with cluster.connection():
                    have = cluster.resources()
                    needs = required_resources(self._config.train, have)
                    fits("curve", needs, have, cluster.nodes())
                    left = [trial for trial in trials if trial not in done]
                    # before it takes its time
                    for note in [*notes(self._warnings), self._ahead(left, done)]:
                        click.echo(note)
                    for trial in left:
                        with Progress("curve") as progress:
                            done[trial] = run_step(trials[trial], progress)
                        told(len(trials) - len(done), trials[trial].title, done[trial].details)
            with Progress("curve", quiet=True) as progress:
                summary = self._summary({trial: done[trial] for trial in trials})
                return run_step(summary, progress).details

    def _ahead(self, left: Sequence[_Trial], done: Mapping[_Trial, Manifest]) -> str:
        """What is to be trained yet, and for how long by the trainings that were made so far."""
        records = sum(size for _, size, _ in left)
        told = f"trainings to go: {len(left)}, of {records:,} records in all"
        own = [step.manifest for step in self._pipeline.steps("train") if step.manifest]
        known = list(done.values()) or own  # those of the run are not measured each
        if not known:
            return told
        worked = [each.details["training_seconds"] for each in known]
        learned = [
            each.details["training_records"] + each.details["validation_records"] for each in known
        ]
        beside = [max(0.0, m.seconds - s) for m, s in zip(known, worked, strict=True)]
        seconds = records * sum(worked) / sum(learned) + len(left) * sum(beside) / len(known)
        return f"{told}; about {duration(seconds)}, as the trainings so far went"

    def _annotated(self) -> pa.Table:
        """The annotated sample in the order of its hashes: the first k are a sample of k."""
        (step,) = self._pipeline.steps("annotate")
        if step.manifest is None:
            raise UserError(
                "the curve needs what annotate makes, which is missing or stale",
                "`llambert run CONFIG --until annotate` makes it",
            )
        self._gates = self._pipeline.gates("annotate")
        records, _ = self._pipeline.asked.annotated_sample()
        return records.select(GOLD.names)

    def _sizes_of(self, variant: str) -> list[int]:
        most = self._records[variant].num_rows
        if most < LEAST_RECORDS:
            what = "gold training records" if variant == "baseline" else "annotations"
            raise UserError(
                f"{most} {what} are too few for a curve of {variant!r}",
                f"it wants {LEAST_RECORDS} at least: a larger sample.size, or gold.train",
            )
        wanted = self._config.curve.sizes or doublings(most)
        if max(wanted) > most:
            self._warnings.append(
                f"{variant}: the largest size is {most:,}, the records that are there, and not "
                f"{max(wanted):,} (sample.size, curve.sizes)"
            )
        given, labels = self._records[variant]["label"], list(self._config.task.labels)
        sizes = sorted({min(size, most) for size in wanted})
        kept = [size for size in sizes if enough(given.slice(0, size), labels)]
        if not kept:
            raise UserError(
                f"no curve of {variant!r}: even {sizes[-1]:,} records are all of one label, or "
                f"fewer than two for each of {len(labels)} labels",
                "a larger sample.size, or gold.train; or larger curve.sizes",
            )
        if len(kept) < len(sizes):
            self._warnings.append(
                f"{variant}: it begins with {kept[0]:,} records, as fewer are all of one label or "
                f"fewer than two for each of {len(labels)} labels"
            )
        return kept

    def _trials(self) -> dict[_Trial, Step]:
        """All trainings, seed by seed, so that a curve that is stopped early is whole for some."""
        labels = list(self._config.task.labels)
        alike = Trials(self._config.train, self._config.label, labels, self._test)
        return {
            (variant, size, seed): alike.step(
                _title(variant, size, seed),
                self._records[variant].slice(0, size),
                seed,
                self.folder / variant / f"size-{size:06d}" / f"seed-{seed}",
            )
            for seed in self._config.curve.seeds
            for variant, sizes in self._sizes.items()
            for size in sizes
        }

    def _summary(self, trained: Mapping[_Trial, Manifest]) -> Step:
        def run(progress: Progress) -> Outcome:
            found = {trial: manifest.details for trial, manifest in trained.items()}
            points = {variant: self._points(variant, found) for variant in self._sizes}
            ahead = {
                variant: look_ahead(each, self._gain, self._chance)
                for variant, each in points.items()
            }
            self._warn_of_the_failed(found)
            if len(self._config.curve.seeds) == 1 and any(each.law for each in ahead.values()):
                self._warnings.append(
                    "the law is that of one seed, so that how far chance goes is not known: "
                    "give curve.seeds more"
                )
            details = {
                "against": self.against,
                "test_records": self._test.num_rows,
                "wanted_gain": self._gain,
                "variants": {
                    variant: {
                        "sizes": (rows := self._rows(variant, found)),
                        "outlook": asdict(ahead[variant]),
                        "doubling_costs": self._cost(variant, rows[-1]),
                    }
                    for variant in self._sizes
                },
                "warnings": self._warnings,
            }
            self.folder.write_bytes("curve.svg", curve_file(details))
            self.folder.write_json(CURVE, details)
            return Outcome({"in": len(trained), "out": len(trained), "dropped": {}}, details)

        inputs: dict[str, str | None] = {
            _title(*trial): manifest.output for trial, manifest in trained.items()
        }
        inputs["run"] = self._pipeline.curve_of()
        return Step("curve", "curve", self.folder, run, inputs, self._gain)

    @property
    def _chance(self) -> float:
        """The accuracy of one label for every record, at which a training that fails ends."""
        return Counter(self._test["label"].to_pylist()).most_common(1)[0][1] / self._test.num_rows

    def _warn_of_the_failed(self, found: _Found) -> None:
        failed = [
            f"{variant} {size:,} seed {seed}"
            for (variant, size, seed), details in found.items()
            if details["accuracy"] <= self._chance
        ]
        if failed:
            self._warnings.append(
                f"{len(failed)} of {len(found)} trainings did no better than one label for all: "
                f"{', '.join(failed[:5])}; the law leaves them out, and another "
                "train.learning_rate or more train.epochs may help"
            )

    def _points(self, variant: str, found: _Found) -> list[Point]:
        seeds = self._config.curve.seeds
        return [
            Point(size, tuple(found[variant, size, seed]["accuracy"] for seed in seeds))
            for size in self._sizes[variant]
        ]

    def _rows(self, variant: str, found: _Found) -> list[dict[str, Any]]:
        """What was measured, size by size; times are means over the seeds."""
        rows = []
        for size in self._sizes[variant]:
            by_seed = {seed: found[variant, size, seed] for seed in self._config.curve.seeds}
            each, measured = list(by_seed.values()), over_seeds(by_seed, self._test.num_rows)
            held_by = devices("train", each[0])
            rows.append(
                {
                    "records": size,
                    "accuracy": measured["accuracy"],
                    "accuracy_interval": measured["accuracy_interval"],
                    "seeds": {str(seed): one["accuracy"] for seed, one in by_seed.items()},
                    "training_seconds": _mean(each, "training_seconds"),
                    "device_seconds": _mean(each, "training_seconds") * (held_by or 1),
                    "device": each[0]["device"],
                }
            )
        return rows

    def _cost(self, variant: str, last: dict[str, Any]) -> dict[str, Any]:
        """What twice the largest size takes: further labels, the LLM for them, one training.

        Labels that are there and were in no training are not paid for again. All starts are left
        out. `cost`, in `currency`, is null where a rate or price is missing.
        """
        size, prices = 2 * last["records"], self._config.plan.prices
        further = max(size - self._records[variant].num_rows, 0)
        hour = prices.encoder_device_hour
        money = None if hour is None else 2 * last["device_seconds"] / 3600 * hour
        cost = {
            "further_records": further,
            "training_seconds": 2 * last["training_seconds"],
            "training_device_seconds": 2 * last["device_seconds"],
            "training_device": last["device"],
            "currency": prices.currency,
            "cost": money,
        }
        if variant == "baseline":
            return cost
        asked = self._asking(size, further)
        llm = asked["llm_cost"]
        return cost | asked | {"cost": None if money is None or llm is None else money + llm}

    def _asking(self, size: int, further: int) -> dict[str, Any]:
        """The LLM's part of the cost of `further` annotations, `size` in all, as a plan tells it.

        `llm_seconds`, `llm_device_seconds` and `llm_cost` are None where no LLM of ours was at
        work, or its rate or price is not known.
        """
        (annotate,), (sample,) = (self._pipeline.steps(s) for s in ("annotate", "sample"))
        done, corpus = made(annotate), made(sample).counts["in"]
        of_a_label = done.counts["in"] / done.counts["out"]
        answers = round(further * of_a_label)
        if round(size * of_a_label) > corpus:
            self._warnings.append(f"the corpus has {corpus:,} records, too few for the doubling")
        asked = held(done)
        prompt, answer = asked.prompt_tokens / asked.records, asked.output_tokens / asked.records
        tokens = [Range.exactly(each) if each else None for each in (prompt, answer)]
        work = asking(self._config, Range.exactly(answers), tokens[0], tokens[1])
        rates = known_rates(self._config, self._pipeline.workdir)
        found = estimate({"annotate": replace(work, starts=0)}, rates, self._config.plan.prices)[
            "stages"
        ]["annotate"]
        rate = rates.get(work.rate)
        hours, device_hours, money = (
            found[name] and found[name]["expected"] for name in ("hours", "device_hours", "cost")
        )
        return {
            "answers": answers,
            "llm_seconds": hours and 3600 * hours,
            "llm_device_seconds": device_hours and 3600 * device_hours,
            "llm_device": rate and rate.device,
            "llm_cost": money,
            "prompt_tokens": round(prompt * answers),
            "output_tokens": round(answer * answers),
        }


def _title(variant: str, size: int, seed: int) -> str:
    return f"curve {variant} {size:,} seed {seed}"


def _mean(found: Sequence[dict[str, Any]], name: str) -> float:
    return sum(one[name] for one in found) / len(found)
