"""The layout of a run's working directory."""

from typing import Any

from llambert.storage import Folder

CURVE = "curve.json"
PLAN = "plan.json"
ARTEFACTS = {  # the folders of a Workdir
    *("corpus", "sample", "annotations", "models", "evaluation"),
    *("labels", "cascade", "review", "quarantine", "gates", "report", "tracking"),
    *("nightly", "plan", "curve"),
}


class Workdir(Folder):
    """The layout of a run's working directory; stages meet only here."""

    @property
    def corpus(self) -> Folder:
        return self / "corpus"

    @property
    def sample(self) -> Folder:
        return self / "sample"

    def annotations(self, annotator: str) -> Folder:
        return self / "annotations" / annotator

    def model(self, variant: str, seed: int) -> Folder:
        return self / "models" / variant / f"seed-{seed}"

    @property
    def evaluation(self) -> Folder:
        return self / "evaluation"

    def labels(self, model: str) -> Folder:
        return self / "labels" / model

    @property
    def cascade(self) -> Folder:
        return self / "cascade"

    @property
    def review(self) -> Folder:
        return self / "review"

    @property
    def quarantine(self) -> Folder:
        return self / "quarantine"

    @property
    def gates(self) -> Folder:
        return self / "gates"

    @property
    def report(self) -> Folder:
        return self / "report"

    @property
    def tracking(self) -> Folder:
        return self / "tracking"

    @property
    def plan(self) -> Folder:
        return self / "plan"

    @property
    def curve(self) -> Folder:
        return self / "curve"

    def keep_plan(self, made_for: str, plan: dict[str, Any]) -> None:
        """Keep a plan of a run that has not begun, to hold it against the run."""
        self.plan.write_json(f"before-{made_for}.json", plan)

    def plan_before(self, made_for: str) -> dict[str, Any] | None:
        """The plan kept for a run with settings of this fingerprint; None where there is none."""
        name = f"before-{made_for}.json"
        return dict(self.plan.read_json(name)) if self.plan.exists(name) else None

    def measured_curve(self, made_of: str) -> dict[str, Any] | None:
        """What `llambert curve` found, if it was run on what has this fingerprint."""
        manifest = self.curve.manifest()
        return manifest.details if manifest and manifest.inputs.get("run") == made_of else None

    def nightly(self, model: str) -> Folder:
        return self / "nightly" / model
