"""Prometheus is told what a stage did: read from the endpoint that it would scrape."""

import time
import urllib.request
from collections import Counter

from llambert.progress import Progress
from llambert.step import Step, run_step
from llambert.storage import Folder, Outcome

EXPECTED = Counter(
    {
        ("ray_llambert_progress_total", "reading"): 7,
        ("ray_llambert_progress_total", "labelling"): 6,
        ("ray_llambert_tokens_total", "text"): 90,
        ("ray_llambert_tokens_total", "prompt"): 5,
        ("ray_llambert_records_in_total", ""): 12,
        ("ray_llambert_records_out_total", ""): 9,
        ("ray_llambert_records_dropped_total", "null_text"): 3,
    }
)


def run(progress: Progress) -> Outcome:
    """A stage of two kinds of work; the counters are those that the workers of a stage get."""
    progress.begin(None, "reading")
    progress.ray_counter().add(7, tokens=70)
    progress.begin(10, "labelling", done=4)
    counter = progress.ray_counter()
    counter.add(4, tokens=20, prompt_tokens=5, output_tokens=0)
    progress.advance(2)
    return Outcome({"in": 12, "out": 9, "dropped": {"null_text": 3, "empty_text": 0}})


def scrape(run_name: str) -> Counter[tuple[str, str]]:
    """The run's counters by metric and their third tag."""
    import ray
    from prometheus_client.parser import text_string_to_metric_families

    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=10) as page:
        text = page.read().decode()
    found: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("run") == run_name:
                assert sample.labels["stage"] == "label"
                third = [sample.labels[k] for k in ("work", "kind", "reason") if k in sample.labels]
                found[sample.name, third[0] if third else ""] += int(sample.value)
    return found


def test_what_a_stage_did_is_there_to_be_scraped(ray_session, tmp_path):
    with Progress("label", run="scraped") as progress:
        run_step(Step("label", "label", Folder(str(tmp_path)), run), progress)
    deadline = time.monotonic() + 60  # Ray passes counters on every ten seconds
    while (found := scrape("scraped")) != EXPECTED:
        assert time.monotonic() < deadline, found
        time.sleep(0.5)


def test_a_counter_that_was_killed_costs_the_figures_alone(ray_session):
    import ray

    progress = Progress("label", quiet=True)
    progress.begin(10, "labelling")
    counter = progress.ray_counter()
    counter.add(0)
    counter.add(4, tokens=20)
    assert progress.figures() == {"tokens": 20}
    ray.kill(counter._total)
    counter.add(4, tokens=20)  # the workers notice nothing
    deadline = time.monotonic() + 30  # what it was told before may still be answered
    while progress.figures() is not None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert progress.rate() is progress.since_first_report() is None
