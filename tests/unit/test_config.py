"""Run files: what they mean, and what a wrong one says."""

import re

import pytest

from llambert.config import RunConfig, dump, load
from llambert.errors import UserError
from llambert.run_yaml import UNTYPED

RUN = """
name: films
workdir: out
task:
  labels: {negative: [], positive: [good]}
  prompt: "Is {text} good?"
corpus: {path: films.jsonl}
sample: {size: 10}
annotate: {engine: recorded, recorded: {path: answers.jsonl}}
train: {model: org/encoder}
"""


@pytest.fixture
def write(tmp_path):
    def write_run(text: str = RUN) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return str(path)

    return write_run


def test_relative_paths_are_relative_to_the_file(write, tmp_path):
    config = load(write())
    assert config.workdir == str(tmp_path / "out")
    assert config.corpus.path == str(tmp_path / "films.jsonl")
    assert config.annotate.recorded.path == str(tmp_path / "answers.jsonl")
    assert config.train.model == "org/encoder"


def test_a_local_folder_is_a_model_name(write, tmp_path):
    (tmp_path / "org" / "encoder").mkdir(parents=True)
    assert load(write()).train.model == str(tmp_path / "org" / "encoder")


def test_the_name_of_an_endpoints_model_is_no_folder(write, tmp_path):
    (tmp_path / "judge").mkdir()
    asked = ["annotate={engine: openai, model: judge}"]
    assert load(write(), asked).annotate.model == "judge"


def test_uris_stay_as_they_are(write):
    config = load(write(RUN.replace("workdir: out", "workdir: s3://bucket/run/")))
    assert config.workdir == "s3://bucket/run"


def test_a_file_uri_is_the_path_it_names(write, tmp_path):
    text = RUN.replace("workdir: out", f"workdir: file://{tmp_path}/out/")
    text = text.replace("path: films.jsonl", "path: file:///corpus/films.jsonl")
    config = load(write(text.replace("org/encoder", f"file://{tmp_path}/encoder")))
    assert config.workdir == str(tmp_path / "out")
    assert config.corpus.path == "/corpus/films.jsonl"
    assert config.train.model == str(tmp_path / "encoder")


@pytest.mark.parametrize(
    "word", ["yes", "no", "on", "off", "1", "0", "01", "1_0", "1.50", "true", "null", "3e5"]
)
def test_labels_are_the_words_written(write, word):
    text = RUN.replace("{negative: [], positive: [good]}", f"{{{word}: [], other: [{word}x]}}")
    assert load(write(text)).task.labels == {word: [], "other": [f"{word}x"]}


def test_aliases_and_examples_are_words_too(write):
    text = RUN.replace("positive: [good]", "positive: [yes, 1, on]").replace(
        '  prompt: "Is', '  examples: [{text: 12, label: yes}]\n  prompt: "Is'
    )
    task = load(write(text)).task
    assert task.labels["positive"] == ["yes", "1", "on"]
    assert (task.examples[0].text, task.examples[0].label) == ("12", "yes")


TEMPLATE = "annotate.chat_template_kwargs"


@pytest.mark.parametrize(
    ("override", "names"),
    [
        (f"{TEMPLATE}={{enable_thinking: no}}", f"{TEMPLATE}.enable_thinking is no"),
        (f"{TEMPLATE}.enable_thinking=Off", f"{TEMPLATE}.enable_thinking is Off"),
        (f"{TEMPLATE}={{a: {{b: [1, on]}}}}", f"{TEMPLATE}.a.b is on"),
        ("annotate={engine_kwargs: {enforce_eager: yes}}", "engine_kwargs.enforce_eager is yes"),
    ],
)
def test_a_word_that_some_take_for_a_boolean_is_refused_where_no_type_is_known(
    write, override, names
):
    with pytest.raises(UserError, match=re.escape(names)):
        load(write(), [override])
    (key, value) = override.split("=", 1)
    if key == TEMPLATE:
        text = RUN.replace("{engine: rec", f"{{chat_template_kwargs: {value}, engine: rec")
        with pytest.raises(UserError, match=re.escape(names.removeprefix("annotate."))):
            load(write(text))


def test_what_is_meant_is_taken_where_no_type_is_known(write, tmp_path):
    given = "annotate.chat_template_kwargs={thinking: false, mode: 'no', on: [1, none]}"
    vllm = ["annotate.engine=vllm", "annotate.model=m"]
    config = load(write(), [given, "annotate.structured=no", *vllm])
    meant = {"thinking": False, "mode": "no", "on": [1, "none"]}
    assert config.annotate.chat_template_kwargs == meant
    assert config.annotate.structured is False  # a field's type makes a boolean of the word
    (tmp_path / "again.yaml").write_text(dump(config))
    assert load(str(tmp_path / "again.yaml")) == config


def test_a_bare_label_has_no_aliases(write):
    text = RUN.replace("  labels: {negative: [], positive: [good]}", "  labels:\n    yes:\n    no:")
    assert load(write(text)).task.labels == {"yes": [], "no": []}


def test_a_bare_label_in_an_override_has_no_aliases(write):
    for override in ("task.labels={good: , bad: [null]}", "task={labels: {good: , bad: [null]}}"):
        overrides = [override, "task.prompt='{text}?'"]
        assert load(write(), overrides).task.labels == {"good": [], "bad": ["null"]}


@pytest.mark.parametrize("task", ["hello", "[a, b]", "{labels: [a, b], prompt: '{text}'}", "''"])
def test_a_task_that_is_no_section(write, task):
    head, _, tail = RUN.partition("task:")
    text = f"{head}task: {task}\ncorpus:{tail.partition('corpus:')[2]}"
    with pytest.raises(UserError, match="task"):
        load(write(text))


def test_merge_keys(write):
    text = RUN.replace("{path: films.jsonl}", "&films\n  path: films.jsonl\n  id: key").replace(
        "{path: answers.jsonl}", "{<<: [{response: said}, {response: x}, *films], path: a.jsonl}"
    )
    config = load(write(text), ["annotate.recorded.id=number"])
    recorded = config.annotate.recorded
    assert recorded.path.endswith("/a.jsonl") and config.corpus.path.endswith("/films.jsonl")
    assert (recorded.id, recorded.response, config.corpus.id) == ("number", "said", "key")


def test_merge_keys_in_the_task(write):
    text = RUN.replace("{negative: [], positive: [good]}", "{<<: {yes: [on], no: }, no: [off]}")
    assert load(write(text)).task.labels == {"yes": ["on"], "no": ["off"]}
    with pytest.raises(UserError, match="merges no section"):
        load(write(RUN.replace("{negative: []", "{<<: word, negative: []")))


def test_an_override_changes_one_of_two_that_share_an_alias(write):
    shared = "chat_template_kwargs: &a {x: {y: 1}}, engine_kwargs: *a"
    config = load(
        write(re.sub("annotate: .*", f"annotate: {{model: org/chat, {shared}}}", RUN)),
        ["annotate.engine_kwargs.x.y=2"],
    )
    assert config.annotate.engine_kwargs == {"x": {"y": 2}}
    assert config.annotate.chat_template_kwargs == {"x": {"y": 1}}


def test_an_alias_inside_its_own_anchor(write):
    with pytest.raises(UserError, match="not YAML"):
        load(write(RUN.replace("{negative: []", "&a {<<: *a, negative: []")))


def test_overrides(write):
    config = load(
        write(), ["sample.size=7", "train.seeds=[1, 2]", "task.system=no", "label.dtype=float32"]
    )
    assert config.sample.size == 7
    assert config.train.seeds == [1, 2]
    assert config.task.system == "no"
    assert config.label.dtype == "float32"


def test_variables_expand(write, monkeypatch):
    monkeypatch.setenv("FILMS", "/data/films.jsonl")
    text = RUN.replace("films.jsonl", "'${FILMS}'").replace("Is {text}", "Is $${text} {text}")
    config = load(write(text))
    assert config.corpus.path == "/data/films.jsonl"
    assert config.task.prompt == "Is ${text} {text} good?"


def test_the_resolved_file_loads_back(write, tmp_path):
    config = load(write())
    (tmp_path / "again.yaml").write_text(dump(config))
    assert load(str(tmp_path / "again.yaml")) == config


@pytest.mark.parametrize(
    "override",
    [
        "annotate.openai.api_key_env=null",
        "annotate={engine: vllm, model: m, engine_kwargs: {a: null, b: [1, {c: null}], d: '1'}}",
        "task.labels={yes: [on, '1'], no: [null, '0']}",
        "task.system='a: b # c\\n\t\u2028é'",
        "gold={train: gold.parquet, test_share: 0.1}",
        "train.learning_rate=1e-7",
        "cascade={}",
    ],
)
def test_whatever_is_set_loads_back(write, tmp_path, override):
    """The stages of a run read it so, and not the file that may have been edited meanwhile."""
    config = load(write(), [override])
    place = tmp_path / "elsewhere" / "again.yaml"
    place.parent.mkdir()
    place.write_text(dump(config))
    again = load(str(place))
    assert again == config and dump(again) == dump(config)


def test_a_text_that_reads_as_a_variable_is_dumped_as_itself(write, tmp_path):
    prompt = "Is $${HOME} $$${HOME} $5 ${} {text}?"
    config = load(write(RUN.replace("Is {text} good?", prompt)))
    assert config.task.prompt == "Is ${HOME} $${HOME} $5 ${} {text}?"
    (tmp_path / "again.yaml").write_text(dump(config))
    assert load(str(tmp_path / "again.yaml")) == config


@pytest.mark.parametrize("name", ["MAX_TOKENS", "TOKENIZER", "KEYS", "MONKEY", "PRIMARY_KEY"])
def test_a_variable_that_is_no_secret(write, monkeypatch, name):
    monkeypatch.setenv(name, "/data/films.jsonl")
    assert load(write(RUN.replace("films.jsonl", f"'${{{name}}}'"))).corpus.path.startswith("/data")


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "TOKEN",
        "db_password",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_ACCESS_KEY_ID",
        "OPENAI_API_KEY",
        "APIKEY",
        "SSH_PRIVATE_KEY",
        "MY_CREDENTIALS",
        "PASSWD",
        "CLIENT_SECRET",
    ],
)
def test_a_variable_that_is_a_secret(write, monkeypatch, name):
    monkeypatch.setenv(name, "hidden-value")
    with pytest.raises(UserError, match="looks like a secret") as caught:
        load(write(RUN.replace("films.jsonl", f"'${{{name}}}'")))
    assert "hidden-value" not in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "annotate.openai.api_key_env=sk-abc123",
        "annotate.openai.api_key_env=[sk-abc123]",
        "annotate.openai.base_url=https://me:sk-abc123@host/v1",
        "annotate.openai.base_url=https://sk-abc123@host/v1",
        "annotate.openai.base_url=https://host/v1?api-key=sk-abc123",
    ],
)
def test_a_key_in_the_wrong_place_is_refused_and_not_printed(write, override):
    with pytest.raises(UserError, match=re.escape(override.partition("=")[0])) as caught:
        load(write(), [override])
    assert "abc123" not in str(caught.value)
    kept = load(write(), ["annotate.openai.base_url=https://host:8000/v1"])
    assert kept.annotate.openai.base_url == "https://host:8000/v1"


@pytest.mark.parametrize(
    ("corpus", "workdir", "apart"),
    [
        ("data", "data/out", False),
        ("data", "data", False),
        ("out/films.jsonl", "out", True),
        ("out/input/*.jsonl", "out", True),
        ("out/labels/a", "out", False),
        ("out/*/*.jsonl", "out", False),
        ("data/*", "data/out", False),
        ("data/*.csv", "data/out", True),
        ("data/**/*.csv", "data/a/out", False),
        ("data/*/*.csv", "data/out", True),
        ("data/*/*/*.parquet", "data/out", False),
        ("data/2024-*/", "data/out", True),
        ("data", "data-out", True),
        ("data", "link/out", False),
        ("s3://bucket/data/", "s3://bucket/data/out", False),
        ("s3://bucket/data", "s3://bucket/data-out", True),
        ("s3://bucket", "s3://bucket/out", False),
        ("s3://bucket/data", "data", True),
    ],
)
def test_the_corpus_and_the_workdir_do_not_hold_one_another(
    write, tmp_path, corpus, workdir, apart
):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    text = RUN.replace("films.jsonl", f"[other, '{corpus}']").replace("dir: out", f"dir: {workdir}")
    if apart:
        load(write(text))
        return
    with pytest.raises(UserError, match="may take in") as caught:
        load(write(text))
    assert corpus.rstrip("/") in str(caught.value) and workdir in str(caught.value)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("label.workers=[0, 2]", "no range"),
        ("label.workers=[3, 2]", "no range"),
        ("label.batch_tokens=0", "greater than or equal to 1"),
    ],
)
def test_wrong_settings_of_the_labelling(write, override, says):
    with pytest.raises(UserError, match=says):
        load(write(), [override])
    right = load(write(), ["label.workers=[1, 2]", "label.batch_tokens=1"]).label
    assert (right.workers, right.batch_tokens) == ((1, 2), 1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("size: 10", "sizes: 10"), ["sample.sizes", "did you mean 'size'", "sample.size"]),
        (("size: 10", "size: 0"), ["sample.size", "greater than 0", "0"]),
        (("size: 10", "size: ten"), ["sample.size", "'ten'"]),
        (
            ("path: films.jsonl", "path: 5"),
            ["\n  corpus.path: Input should be a valid string", "; or: "],
        ),
        (("name: films", "name: a/b"), ["name", "letters, digits", "'a/b'"]),
        (("{negative: [], positive: [good]}", "[a, b]"), ["task.labels", "{good: [], bad: []}"]),
        (("Is {text} good?", "Is it good?"), ["task.prompt", "{text}"]),
        (
            ("{negative: [], positive: [good]}", "{positive: [], positive: []}"),
            ["positive", "twice"],
        ),
        (("{negative: [], positive: [good]}", "{Yes: [], yes!: []}"), ["names two labels"]),
        (("{negative: [], positive: [good]}", "{yes: []}"), ["at least two"]),
        (("{negative: [], positive: [good]}", "{good: [], bad: [good]}"), ["names two labels"]),
        (("films.jsonl", "'${NOT_SET_ANYWHERE}'"), ["corpus.path", "NOT_SET_ANYWHERE", "not set"]),
        (("films.jsonl", "'${MY_SECRET_KEY}'"), ["looks like a secret"]),
        (("films.jsonl", "'${STORE:-/tmp}'"), ["corpus.path", "only ${NAME} is known"]),
        (("model: org/encoder", "model: org/encoder, variants: [combined]"), ["gold.train"]),
        (("sample: {size: 10}", "sample: {size: 10}\nsample: {size: 2}"), ["'sample'", "twice"]),
        (("sample: {size: 10}", "sample: [10"), ["not YAML"]),
        (("sample: {size: 10}\n", ""), ["sample", "required"]),
    ],
)
def test_a_wrong_file_names_field_value_and_remedy(write, change, says):
    assert change[0] in RUN
    with pytest.raises(UserError) as caught:
        load(write(RUN.replace(*change)))
    for words in says:
        assert words in str(caught.value)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("label.batch_tokens=0", "\n  label.batch_tokens: Input should be greater than"),
        ("plan.prices.llm_device_hour=.inf", "llm_device_hour: Input should be a finite number"),
        ("task.labels={'[spam]': 5, ham: []}", "\n  task.labels.[spam]: Input should be"),
        ("train={model: m, 'model[0]': x}", "\n  train.model[0]: no such field"),
    ],
)
def test_a_wrong_field_is_named_as_it_is_written_and_once(write, override, says):
    with pytest.raises(UserError) as caught:
        load(write(), [override])
    assert says in str(caught.value)
    assert str(caught.value).count("\n  ") == 2  # the field, and the remedy


def test_an_override_that_wants_quotes_says_which(write):
    with pytest.raises(UserError, match="quote it") as caught:
        load(write(), ["corpus.path=*.txt"])
    assert caught.value.remedy.endswith("""--set 'corpus.path="*.txt"'""")
    assert load(write(), ['corpus.path="*.txt"']).corpus.paths[0].endswith("/*.txt")


@pytest.mark.parametrize("override", ["size", "sample.size.x=1", "=1", "sample.size=[1"])
def test_a_wrong_override(write, override):
    with pytest.raises(UserError):
        load(write(), [override])


def test_no_such_file():
    with pytest.raises(UserError, match="no such file"):
        load("nowhere.yaml")


def test_every_field_is_documented():
    """`llambert schema` is what an editor shows; a field without a line there is unfinished."""
    schema = RunConfig.model_json_schema()
    sections = [schema, *schema["$defs"].values()]
    bare = [
        f"{section['title']}.{name}"
        for section in sections
        for name, field in section.get("properties", {}).items()
        if not field.get("description")
    ]
    assert bare == []


def test_every_section_without_types_is_looked_through():
    schema = RunConfig.model_json_schema()
    sections = [schema, *schema["$defs"].values()]
    fields = [item for each in sections for item in each["properties"].items()]
    assert {name for name, field in fields if field.get("additionalProperties") is True} == UNTYPED
