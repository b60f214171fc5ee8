"""What only a GPU can show: fine-tuning with DeepSpeed on one, and labelling in bfloat16."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from llambert.classify import Labeller
from llambert.encoder import load_classifier, load_tokenizer, tokenize
from llambert.forward import pad
from llambert.progress import Progress
from llambert.storage import Folder, Outcome
from llambert.train import TrainConfig, train
from tests.tiny_roberta import easy_records, make_tiny_roberta

LABELS = ["negative", "positive"]
SETTINGS: dict[str, Any] = {
    "epochs": 1,
    "learning_rate": 5e-3,
    "max_length": 32,
    "deepspeed": {"zero_stage": 2},
}


@pytest.fixture(scope="session")
def gpu() -> None:
    """Skips what needs a GPU where there is none."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a GPU: torch.cuda.is_available() is False")


# The fixture is asked for by mark, so that it comes before any that starts something.
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("gpu")]


@dataclass
class Trained:
    folder: str
    outcome: Outcome


@pytest.fixture(scope="module")
def trained(gpu, ray_session, tmp_path_factory) -> Trained:
    """A tiny encoder after one epoch on a GPU with ZeRO 2."""
    place = tmp_path_factory.mktemp("gpu")
    encoder, folder = make_tiny_roberta(place / "encoder"), str(place / "trained")
    config = TrainConfig(model=encoder, **SETTINGS)
    with Progress("train", quiet=True) as progress:
        outcome = train(config, LABELS, easy_records(2000), encoder, 7, Folder(folder), progress)
    return Trained(folder, outcome)


def test_one_epoch_on_a_gpu_with_zero_2(trained):
    details = trained.outcome.details
    assert details["device"] == "gpu"
    assert details["deepspeed"]["zero_optimization"]["stage"] == 2
    assert details["deepspeed"]["bf16"]["enabled"]
    assert details["tokens"] > 0 and len(details["epochs"]) == 1
    assert details["validation_accuracy"] > 0.95


def test_bfloat16_on_a_gpu_says_what_float32_on_the_cpu_says(trained):
    import torch

    records = easy_records(200, seed=99)
    texts = records["text"].to_pylist()
    tokenizer, model = load_tokenizer(trained.folder), load_classifier(trained.folder).eval()
    sequences = tokenize(tokenizer, texts, tokenizer.model_max_length)
    labeller = Labeller(trained.folder, dtype="bfloat16")
    forward = labeller._forward
    assert (forward.device.type, forward.dtype) == ("cuda", torch.bfloat16)
    assert not forward.padded
    found, _ = labeller.predict(sequences)

    inputs = pad(sequences, tokenizer.pad_token_id)
    with torch.inference_mode():
        expected = model(**inputs).logits.softmax(-1).numpy()
    assert model.device.type == "cpu" and model.dtype == torch.float32
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert (found.argmax(1) == expected.argmax(1)).all()
    right = [LABELS[i] for i in found.argmax(1)] == np.array(records["label"].to_pylist())
    assert right.mean() > 0.95
