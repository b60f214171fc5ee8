"""What tells one model from another."""

import os
from pathlib import Path

from llambert.models import fingerprint_model


def test_fingerprint_of_a_model(tmp_path: Path) -> None:
    assert fingerprint_model("FacebookAI/roberta-large") == "FacebookAI/roberta-large"
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_text("weights")
    before = fingerprint_model(str(tmp_path))
    (tmp_path / "manifest.json").touch()
    (tmp_path / ".config.json.0123").write_text("left by a killed writer")
    (tmp_path / "README.md").write_text("its card")
    assert fingerprint_model(str(tmp_path)) == before
    weights.write_text("WEIGHTS")
    assert fingerprint_model(str(tmp_path)) != before


def test_a_large_model_changed_anywhere_is_another(tmp_path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.touch()
    os.truncate(weights, 100 * 2**20)
    before = fingerprint_model(str(tmp_path))
    with weights.open("r+b") as file:
        file.seek(50 * 2**20)
        file.write(b"x" * 2**20)  # a smaller change may lie between the pieces that are hashed
    assert fingerprint_model(str(tmp_path)) != before
