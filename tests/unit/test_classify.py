"""Labelling in one process: against plain transformers, within a budget, without enough memory."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from llambert import cluster
from llambert import forward as forward_pass
from llambert.budget import find_budget, fits, measure
from llambert.classify import Labeller, Tokenizer, labelling_dtype
from llambert.encoder import load_classifier, load_tokenizer, tokenize
from llambert.errors import StageError
from llambert.forward import Forward

ROOT = Path(__file__).parents[2]
TEXTS = ["a good film", "bad", "the plot is thin but the actors are very good " * 20, "so so", "a"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tests.tiny_roberta import make_tiny_roberta

    encoder = make_tiny_roberta(tmp_path_factory.mktemp("roberta"))
    load_classifier(encoder, ["negative", "positive"]).save_pretrained(encoder)
    return encoder


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty place for what a machine remembers."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def alone(model, tokens):
    """The probabilities of one sequence by transformers alone."""
    with torch.inference_mode():
        ids = torch.from_numpy(tokens.astype(np.int64))[None]
        return model(input_ids=ids).logits.float().softmax(-1)[0].numpy()


def small(kind: str):
    """A random classifier of a family, with weights large enough for differences to show."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=300,
        pad_token_id=1,
        num_labels=3,
        initializer_range=0.5,
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()


@pytest.mark.parametrize(
    ("dtype", "by_head", "error"),
    [("float32", False, 1e-5), ("float32", True, 1e-5), ("bfloat16", False, 0.06)],
)
@pytest.mark.parametrize("kind", ["Bert", "Roberta", "XLMRoberta", "Camembert", "DistilBert"])
def test_a_batch_of_any_family_gives_what_each_sequence_gives_alone(
    kind, by_head, dtype, error, monkeypatch
):
    monkeypatch.setattr(forward_pass, "_heads_pay", lambda config: by_head)
    rng = np.random.default_rng(0)
    lengths = [290, 290, 40, 40, 17, 3, 3, 3, 1]  # from 256 on, attention on a CPU is another
    sequences = [rng.integers(5, 300, n).astype(np.int32) for n in lengths]
    model = small(kind).to(getattr(torch, dtype))
    expected = [alone(model, tokens) for tokens in sequences]  # with weights rounded as ours
    forward = Forward(model, pad_id=1)
    assert forward.padded == (kind == "DistilBert")
    found = forward(sequences).float().softmax(-1).numpy()
    np.testing.assert_allclose(found, expected, atol=error)
    assert np.std(expected) > 0.1  # else anything would pass


def test_confidences_of_half_precision_are_told_apart():
    """Logits of bfloat16 would lie on a grid so coarse that the least certain share one value."""
    rng = np.random.default_rng(0)
    sequences = [rng.integers(5, 300, 20).astype(np.int32) for _ in range(500)]
    logits = Forward(small("Roberta").to(torch.bfloat16), pad_id=1)(sequences)
    assert len(np.unique(logits.softmax(-1).numpy()[:, 0])) > 490


def test_another_activation_is_left_as_it_is():
    sequences = [np.arange(5, 25, dtype=np.int32)]
    plain, changed = small("Bert"), small("Bert")
    for model in (plain, changed):
        model.config.hidden_act = "relu"
        for layer in model.bert.encoder.layer:
            layer.intermediate.intermediate_act_fn = torch.nn.ReLU()
    found = Forward(changed, pad_id=1)(sequences).softmax(-1).numpy()
    np.testing.assert_allclose(found, [alone(plain, sequences[0])], atol=1e-5)


@pytest.mark.parametrize(
    ("gpus", "half", "dtype"),
    [
        (1, "", "bfloat16"),
        (0, "amx_bf16", "bfloat16"),
        (0, "avx512_bf16", "bfloat16"),
        (0, "", "float32"),
    ],
)
def test_half_precision_is_taken_where_it_is_fast(monkeypatch, gpus, half, dtype):
    monkeypatch.setattr(cluster, "gpus", lambda: gpus)
    monkeypatch.setattr(cluster, "cpus_have", lambda *features: half in features)
    assert labelling_dtype("auto") == dtype
    assert labelling_dtype("float16") == "float16"


@pytest.mark.parametrize("batch_tokens", [0, 1, 100])
@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("bfloat16", 0.01)])
def test_predictions_are_those_of_one_text_at_a_time(folder, batch_tokens, dtype, error):
    tokenizer, plain = load_tokenizer(folder), load_classifier(folder).eval()
    sequences = tokenize(tokenizer, TEXTS, tokenizer.model_max_length)
    found, _ = Labeller(folder, dtype=dtype, batch_tokens=batch_tokens).predict(sequences)
    expected = [alone(plain, tokens) for tokens in sequences]
    np.testing.assert_allclose(found, expected, atol=error)


def test_a_block_keeps_its_ids_and_says_how_sure_it_is(folder):
    block = pa.table({"id": list(range(5)), "text": TEXTS, "other": [1] * 5})
    tokens = Tokenizer(folder)(block)
    assert tokens.column_names == ["id", "tokens"]
    labeller = Labeller(folder, probabilities=True)
    table = labeller(tokens)
    assert table.column_names == ["id", "label", "confidence", "probabilities"]
    assert table["id"].to_pylist() == list(range(5))
    for row in table.to_pylist():
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-5)
        assert row["confidence"] == max(row["probabilities"])
    part = labeller(tokens.slice(2, 2))  # a view into the middle of Arrow's buffers
    assert part["confidence"].to_pylist() == pytest.approx(table["confidence"].to_pylist()[2:4])
    assert labeller(Tokenizer(folder)(block.slice(0, 0))).num_rows == 0


def test_an_output_that_is_not_a_number_is_no_label(folder, tmp_path):
    broken = load_classifier(folder)
    broken.classifier.out_proj.bias.data[0] = float("nan")
    broken.save_pretrained(tmp_path / "broken")
    load_tokenizer(folder).save_pretrained(tmp_path / "broken")
    with pytest.raises(StageError, match="1 of 1 records is not a number"):
        Labeller(str(tmp_path / "broken"))


def test_the_counter_hears_of_readiness_then_of_records_tokens_and_padding(folder):
    class Heard(list):
        def add(self, records, **figures):
            self.append((records, figures))

    heard = Heard()
    labeller = Labeller(folder, counter=heard)
    block = Tokenizer(folder)(pa.table({"id": list(range(5)), "text": TEXTS}))
    labeller(block)
    ready, (records, figures) = heard
    assert ready == (0, {}) and records == 5
    tokens = sum(len(each) for each in block["tokens"].to_pylist())
    assert figures["tokens"] == tokens
    assert figures["cells"] == -(-tokens // 32) * 32  # no padding, but the filling for oneDNN
    assert figures["device_seconds"] > 0


def test_a_labeller_has_run_its_model_before_it_is_ready(folder):
    from torch.nn.modules.module import register_module_forward_hook

    events: list[str] = []

    class Heard:
        def add(self, records, **figures):
            events.append("ready")

    hook = register_module_forward_hook(lambda module, *_: events.append(type(module).__name__))
    try:
        Labeller(folder, batch_tokens=100, counter=Heard())  # a given budget is not measured
    finally:
        hook.remove()
    assert "RobertaModel" in events[: events.index("ready")]


LONGEST = np.arange(5, 69, dtype=np.int32)


@pytest.fixture
def forward(folder):
    return Forward(load_classifier(folder), pad_id=1)


def test_a_budget_is_measured_a_few_times_and_remembered_for_the_shape_of_model(
    folder, forward, cache
):
    config, longest = load_classifier(folder).config, LONGEST
    budget = find_budget(forward, config, longest)
    (file,) = cache.rglob("budgets/*.json")
    known = json.loads(file.read_text())
    assert known["batch_tokens"] == budget and str(budget) in known["rates"]
    assert known["rates"][str(budget)] * 1.05 >= max(known["rates"].values())
    # a start that was disturbed counts no more once another has been faster
    file.write_text(json.dumps({"batch_tokens": 77, "rates": {"1024": 1e12}, "measured": 2}))
    assert find_budget(forward, config, longest) == 1024
    known = json.loads(file.read_text())
    assert known["measured"] == 3 and known["rates"]["1024"] == 1e12 and len(known["rates"]) > 1
    file.write_text(json.dumps(known | {"batch_tokens": 77}))
    assert find_budget(forward, config, longest) == 77
    assert find_budget(forward, config, longest[:32]) != 77  # shorter records are another case
    assert len(measure(forward, longest)) >= 2


def test_a_budget_is_found_however_long_the_first_one_took(forward, monkeypatch):
    monkeypatch.setattr("llambert.budget._ENOUGH_S", -1.0)  # as after halvings for want of memory
    assert len(measure(forward, LONGEST)) == 1


def test_a_budget_must_fit_the_line_through_the_last_two():
    used = [(1000, 10), (2000, 30), (4000, 70)]  # 20 bytes a thousand tokens
    assert fits(used, 8000, 170) and not fits(used, 8000, 160)
    assert fits(used[:1], 8000, 1)


SCARCE = """
import resource, sys
import numpy as np
from llambert.classify import Labeller

folder, wanted = sys.argv[1], int(sys.argv[2])
labeller = Labeller(folder, batch_tokens=10**9)
rng = np.random.default_rng(0)
sequences = [rng.integers(5, 300, 64).astype(np.int32) for _ in range(wanted)]
few, _ = labeller.predict(sequences[:64])
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 150 * 2**20, size + 150 * 2**20))
found, _ = labeller.predict(sequences)
assert np.allclose(found[:64], few, atol=1e-5) and (found.sum(1) > 0.99).all()
print("budget", labeller._budget)
"""


def test_out_of_memory_halves_the_budget_and_loses_nothing(folder):
    """In a process whose memory the kernel bounds; 20,000 sequences at once do not fit."""
    command = [sys.executable, "-c", SCARCE, folder, "20000"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    budget = int(done.stdout.split()[-1])
    assert 64 <= budget < 20_000 * 64
    assert "out of memory: batches of" in done.stderr


MANY_BATCHES = """
import sys
import numpy as np
import torch
from llambert import forward
from tests.unit.test_classify import small

kind, dtype, longest = sys.argv[1:]
forward._heads_pay = lambda config: True
run = forward.Forward(small(kind).to(getattr(torch, dtype)), pad_id=1)
rng = np.random.default_rng(0)
for _ in range(100):
    lengths = rng.integers(1, int(longest), rng.integers(1, 1 + 720 // int(longest)))
    run([rng.integers(5, 300, n).astype(np.int32) for n in lengths])
"""


@pytest.mark.parametrize(
    ("kind", "dtype", "longest"),
    [
        ("Roberta", "float32", 60),
        ("Roberta", "float32", 298),
        pytest.param(
            *("DistilBert", "bfloat16", 60),
            marks=pytest.mark.skipif(
                not torch.ops.mkldnn._is_mkldnn_bf16_supported(),
                reason="without AVX-512 torch multiplies bfloat16 without oneDNN",
            ),
        ),
    ],
)
def test_batches_of_many_sizes_leave_few_kernels_in_memory(kind, dtype, longest):
    command = [sys.executable, "-c", MANY_BATCHES, kind, dtype, str(longest)]
    told = os.environ | {"ONEDNN_VERBOSE": "profile_create"}  # a line for each that is made
    done = subprocess.run(command, capture_output=True, text=True, env=told, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    made = [line for line in done.stdout.splitlines() if "create:cache_miss" in line]
    products = [line for line in made if ",matmul," in line or ",inner_product," in line]
    assert 0 < len(products) < 75


OWN_CODE = """
from transformers import RobertaConfig, RobertaForSequenceClassification

class OwnConfig(RobertaConfig):
    model_type = "own"

class OwnClassifier(RobertaForSequenceClassification):
    config_class = OwnConfig
"""


def test_a_model_with_its_own_code_loads_only_where_that_is_allowed(folder, tmp_path, monkeypatch):
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    own = tmp_path / "own"
    shutil.copytree(folder, own)
    (own / "modeling_own.py").write_text(OWN_CODE)
    config = json.loads((own / "config.json").read_text()) | {
        "model_type": "own",
        "auto_map": {
            "AutoConfig": "modeling_own.OwnConfig",
            "AutoModelForSequenceClassification": "modeling_own.OwnClassifier",
        },
    }
    (own / "config.json").write_text(json.dumps(config))
    labeller = Labeller(str(own), trust_remote_code=True)
    assert type(labeller._forward._model).__name__ == "OwnClassifier"
    with pytest.raises(ValueError, match="trust_remote_code"):
        Labeller(str(own))
