"""Which files a night takes, what `--publish` and `--discard` do; labelling is tested on Ray."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from llambert.config import RunConfig
from llambert.drift import NightlyConfig, refused
from llambert.errors import StageError, UserError
from llambert.lease import Lease
from llambert.ledger import Ledger, entries
from llambert.nightly import PUBLISHED, Nights, _columns
from llambert.nightly_verdict import discard, publish
from llambert.records import list_sources, open_corpus, read_source
from llambert.storage import Folder, Manifest
from llambert.workdir import Workdir


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "films",
            "workdir": str(tmp_path / "out"),
            "task": {"labels": {"bad": [], "good": []}, "prompt": "Good? {text}"},
            "corpus": {"path": str(tmp_path / "corpus")},
            "sample": {"size": 10},
            "annotate": {"engine": "recorded", "recorded": {"path": "answers.parquet"}},
            "train": {},
        }
    )


def leave(config: RunConfig, model: str, number: int, published: bool = False) -> Folder:
    """What a finished night leaves, labels aside."""
    folder = Workdir(config.workdir).nightly(model) / f"night-{number:04d}"
    folder.finish(Manifest("nightly", "f", "o", details={"held": ["why"], "waiting": [number]}))
    if published:
        folder.write_bytes(PUBLISHED, b"")
    return folder


def test_the_night_of_a_model_that_is_trained_no_more(config):
    leave(config, "old", 1, published=True)
    held = leave(config, "old", 2)
    leave(config, "new", 1)
    leave(config, "new", 2, published=True)
    assert publish(config, "2").uri == held.uri
    assert held.exists(PUBLISHED)


def test_a_night_that_several_models_hold_back_is_not_guessed(config):
    leave(config, "old", 2)
    new = leave(config, "new", 2)
    with pytest.raises(UserError, match=r"2 models have a night 2: new, old\n.*new/2"):
        publish(config, "2")
    assert publish(config, "new/2").uri == new.uri
    assert publish(config, "2").uri != new.uri  # the one that is left


def test_once_more_changes_nothing(config):
    night = leave(config, "old", 3)
    assert publish(config, "3").uri == publish(config, "3").uri == night.uri


@pytest.mark.parametrize(
    ("night", "says"),
    [
        ("1", "no finished night 1"),  # begun, but without a manifest
        ("9", "no finished night 9"),
        ("new/2", "no finished night 2"),
        ("../2/2", "names no night"),
        ("two", "names no night"),
    ],
)
def test_what_is_no_night(config, night, says):
    leave(config, "old", 1).unfinish()
    leave(config, "old", 2)
    with pytest.raises(UserError, match=says):
        publish(config, night)


@pytest.fixture
def nights(config: RunConfig, tmp_path: Path) -> Nights:
    """The nights of a model that was made elsewhere, before a corpus of two files."""
    model = Folder(str(tmp_path / "model"))
    model.write_json("config.json", {"id2label": {"0": "bad", "1": "good"}})
    model.write_bytes("model.safetensors", b"weights")
    (tmp_path / "corpus").mkdir()
    for name in ("a", "b"):
        (tmp_path / "corpus" / f"{name}.txt").write_text(f"text of {name}")
    return Nights(config, model.uri)


def done(nights: Nights, config: RunConfig, held: bool = False) -> int:
    """What a night leaves that labelled all that was new or changed; its number."""
    number, ledger = nights.last + 1, Ledger(nights.folder)
    changes = ledger.changes(list_sources(config.corpus))
    leave(config, nights.folder.uri.split("/")[-1], number, published=not held)
    ledger.write(entries([*changes.new, *changes.changed], number), number)
    return number


def test_a_landing_folder_that_was_emptied_has_nothing_new(nights, config, tmp_path):
    done(nights, config)
    for file in (tmp_path / "corpus").iterdir():
        file.rename(tmp_path / file.name)
    assert list(nights.label(print)) == []
    (tmp_path / "corpus").rmdir()  # as on an object store, which has no empty folders
    assert list(nights.label(print)) == []


def test_a_path_that_was_emptied_hides_nothing_of_the_others(nights, config, tmp_path):
    (tmp_path / "more").mkdir()
    for name in ("more/c", "single"):
        (tmp_path / f"{name}.txt").write_text("a text")
    paths = [str(tmp_path / name) for name in ("corpus", "more", "single.txt")]
    several = config.corpus.model_copy(update={"path": paths})
    config = config.model_copy(update={"corpus": several})
    nights = Nights(config, str(tmp_path / "model"))
    done(nights, config)
    shutil.rmtree(tmp_path / "corpus")
    (tmp_path / "single.txt").unlink()
    (tmp_path / "more" / "d.txt").write_text("a text that is new")
    corpus = nights._corpus()
    assert corpus is not None
    assert [source.name for source in corpus.sources] == ["more/c.txt", "more/d.txt"]
    job = nights._begin(corpus)
    assert job is not None and [source.name for source in job.corpus.sources] == ["more/d.txt"]
    shutil.rmtree(tmp_path / "more")
    assert nights._corpus() is None


def test_a_path_of_which_nothing_was_ever_labelled_is_a_mistake(nights, config, tmp_path):
    done(nights, config)
    for path in ("corpse", "corp"):
        wrong = config.corpus.model_copy(update={"path": str(tmp_path / path)})
        elsewhere = Nights(config.model_copy(update={"corpus": wrong}), str(tmp_path / "model"))
        with pytest.raises(UserError, match=rf"no such path.*{path}"):
            list(elsewhere.label(print))


def test_the_first_night_needs_files(nights, tmp_path):
    for file in (tmp_path / "corpus").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="no file in it"):
        list(nights.label(print))


def test_a_killed_night_of_which_a_file_vanished_begins_anew_without_it(nights, config, tmp_path):
    begun = nights._begin(open_corpus(config.corpus))
    assert begun is not None and len(begun.entries) == 2
    again = nights._unfinished(open_corpus(config.corpus))
    assert again == begun  # nothing has changed: it goes on
    (tmp_path / "corpus" / "a.txt").unlink()
    with pytest.raises(StageError, match=r"cannot open .*a\.txt"):  # which ended the night
        list(read_source(begun.corpus, begun.corpus.sources[0]))
    corpus = open_corpus(config.corpus)
    assert nights._unfinished(corpus) is None
    anew = nights._begin(corpus)
    assert anew is not None and anew.number == begun.number
    assert [Path(entry.uri).name for entry in anew.entries] == ["b.txt"]
    frozen = json.loads(Path(nights.folder.path("night-0001/sources.json")).read_text())
    assert [source["name"] for source in frozen["sources"]] == ["b.txt"]


def test_a_discarded_nights_files_are_new_again(nights, config, tmp_path):
    done(nights, config)
    (tmp_path / "corpus" / "b.txt").write_text("another text")
    (tmp_path / "corpus" / "c.txt").write_text("a text that is new")
    number = done(nights, config, held=True)
    assert nights.waiting() == [number]
    assert nights._begin(open_corpus(config.corpus)) is None
    for _ in range(2):  # the second time changes nothing
        assert discard(config, str(number)).uri.endswith("night-0002")
    assert nights.waiting() == [] and nights.last == number
    with pytest.raises(UserError, match="night 2 is discarded"):
        publish(config, str(number))
    job = nights._begin(open_corpus(config.corpus))
    assert job is not None and job.number == 3
    assert [Path(entry.uri).name for entry in job.entries] == ["b.txt", "c.txt"]


def test_a_kill_while_a_night_is_discarded_leaves_it_held_and_its_files_new(nights, config):
    number, forget = done(nights, config, held=True), Ledger.forget

    def killed(ledger: Ledger, night: int) -> None:
        forget(ledger, night)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Ledger, "forget", killed)
        discard(config, str(number))
    assert nights.waiting() == [number] and nights.last == number
    assert nights._begin(open_corpus(config.corpus)) is not None
    discard(config, str(number))
    assert nights.waiting() == []


def test_a_night_that_was_discarded_before_the_ledger_had_it_leaves_its_files_new(nights, config):
    begun = nights._begin(open_corpus(config.corpus))
    assert begun is not None
    leave(config, nights.folder.uri.split("/")[-1], begun.number)  # killed after its manifest
    discard(config, str(begun.number))
    nights._repair()
    job = nights._begin(open_corpus(config.corpus))
    assert job is not None and job.number == 2
    assert [entry.uri for entry in job.entries] == [entry.uri for entry in begun.entries]


def test_a_night_killed_before_it_was_published_and_then_discarded_stays_so(nights, config):
    """Its files are labelled again: published as well, its records would be there twice."""
    done(nights, config)
    night = nights.folder / "night-0001"
    night.fs.rm_file(night.path(PUBLISHED))
    for held in ([], ["why"]):
        night.finish(Manifest("nightly", "f", "o", details={"held": held, "waiting": []}))
        discard(config, "1")
        nights._repair()
        assert not night.exists(PUBLISHED)
    assert nights._begin(open_corpus(config.corpus)) is not None


def leave_held(nights: Nights, config: RunConfig) -> None:
    """A first night as it was killed between its manifest and its last file, held back."""
    begun = nights._begin(open_corpus(config.corpus))
    assert begun is not None
    night = nights.folder / "night-0001"
    details = {"held": ["why"], "waiting": [1]}
    columns = {"columns": _columns(begun.corpus), "ids": "string"}
    night.finish(Manifest("nightly", "f", "o", details=details, inputs=columns))


def test_a_held_night_that_was_killed_before_it_was_told_is_told_once(nights, config, tmp_path):
    leave_held(nights, config)
    new = tmp_path / "corpus" / "c.txt"
    new.write_text("a text that is new, to be labelled once the night was looked at")
    (told,) = nights.label(print)
    assert (told.number, told.held) == (1, ["why"])
    new.unlink()
    assert list(nights.label(print)) == [] and nights.waiting() == [1]


def test_a_held_night_that_was_published_before_it_was_told_is_not_told_as_held(nights, config):
    leave_held(nights, config)
    publish(config, "1")
    assert list(nights.label(print)) == [] and (nights.waiting(), nights.last) == ([], 1)


def test_nights_are_read_alike_but_for_those_that_were_discarded(nights, config, tmp_path):
    night = nights.folder / f"night-{done(nights, config, held=True):04d}"
    columns = {"columns": _columns(open_corpus(config.corpus))}
    night.finish(replace(night.manifest(), inputs=columns))
    nights._check_columns(open_corpus(config.corpus))
    (tmp_path / "corpus" / "part").mkdir()
    (tmp_path / "corpus" / "part" / "a.txt").write_text("a.txt#0 is the id of another record")
    path = str(tmp_path / "corpus" / "part")
    elsewhere = open_corpus(config.corpus.model_copy(update={"path": path}))
    with pytest.raises(UserError, match=r"where ids are made, another corpus\.path"):
        nights._check_columns(elsewhere)
    discard(config, "1")
    nights._check_columns(elsewhere)


@pytest.mark.parametrize("decide", [publish, discard])
def test_a_night_is_decided_on_by_one_process_at_a_time(nights, config, decide):
    number = done(nights, config, held=True)
    with Lease(nights.folder), pytest.raises(UserError, match="another run"):
        decide(config, str(number))
    assert nights.waiting() == [number]


def test_files_of_a_killed_night_that_were_moved_away_are_named(nights, config, tmp_path):
    done(nights, config)
    (tmp_path / "corpus" / "c.txt").write_text("a text that is new")
    assert nights._begin(open_corpus(config.corpus)) is not None  # and is killed
    assert nights._vanished(open_corpus(config.corpus).sources) == []
    for file in (tmp_path / "corpus").iterdir():
        file.rename(tmp_path / file.name)
    told: list[str] = []
    for _ in range(2):  # once is enough
        assert list(nights.label(told.extend)) == []
    assert [Path(uri).name for uri in told] == ["c.txt"]


def test_a_night_needs_no_file_that_can_be_read(nights, config, tmp_path):
    """As a landing folder whose only new file is broken: it is refused as one among others is."""
    for number, ids in ((1, "string"), (2, "int64")):
        (tmp_path / "corpus" / "a.txt").write_text(f"text {number}")
        assert done(nights, config, held=number == 2) == number  # whose ids may be what is wrong
        night = nights.folder / f"night-{number:04d}"
        night.finish(replace(night.manifest(), inputs={"columns": "c", "ids": ids}))
    for file in (tmp_path / "corpus").iterdir():
        file.unlink()
    (tmp_path / "corpus" / "c.txt").write_bytes(b"")
    corpus = nights._corpus()
    assert corpus is not None and [source.name for source in corpus.sources] == ["c.txt"]
    assert corpus.id_type == pa.string()


def test_a_night_that_was_killed_goes_on_with_ids_of_its_type(nights, config, tmp_path):
    """Else those it has labelled and those to come could not be compared."""
    written = {"c": '{"id": 1, "text": "a"}', "a": '{"id": "x", "text": "b"}'}
    jsonl = {"path": str(tmp_path / "lines"), "id": "id", "text": "text"}
    config = RunConfig.model_validate(config.model_dump() | {"corpus": jsonl})
    nights = Nights(config, str(tmp_path / "model"))
    (tmp_path / "lines").mkdir()
    for name, line in written.items():
        (tmp_path / "lines" / f"{name}.jsonl").write_text(line + "\n")
        corpus = nights._corpus()
        assert corpus is not None
        job = nights._unfinished(corpus) or nights._begin(corpus)  # and is killed
        assert job is not None and job.corpus.id_type == pa.int64()
    assert corpus.id_type == pa.string()
    made = RunConfig.model_validate(config.model_dump() | {"corpus": jsonl | {"id": None}})
    assert nights._unfinished(open_corpus(made.corpus)) is None  # it begins anew


def test_a_night_that_refused_most_records_is_held_back():
    bounds = NightlyConfig()
    whole, broken = {"files": 3, "corrupt_files": 1}, {"files": 3, "corrupt_files": 2}
    counts = {"in": 1000, "out": 10, "dropped": {"null_text": 900, "null_id": 90}}
    (said,) = refused(bounds, counts, whole)
    assert said.startswith("990 of 1,000 records are refused (null_text 900, null_id 90): more")
    assert not refused(bounds, {"in": 1000, "out": 500, "dropped": {"null_text": 500}}, whole)
    few = {"in": 499, "out": 1, "dropped": {"null_text": 498}}
    assert not refused(bounds, few, whole)
    assert refused(bounds, few, broken) == [
        "2 of 3 files cannot be read: more than 0.5 (refused_share)"
    ]
    assert refused(bounds, {"in": 3, "out": 0, "dropped": {"null_text": 3}}, whole)
    assert not refused(bounds, {"in": 0, "out": 0, "dropped": {}}, whole)


def test_a_published_night_is_not_discarded(nights, config):
    number = done(nights, config)
    with pytest.raises(UserError, match="night 1 is published"):
        discard(config, str(number))
    assert nights._begin(open_corpus(config.corpus)) is None
