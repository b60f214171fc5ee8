"""A random RoBERTa small enough to learn an easy task in seconds, and that task's records."""

import random
from pathlib import Path

import pyarrow as pa

from llambert.schema import GOLD

_WORDS = ["the", "film", "was", "a", "story", "with", "plot", "of", "actors", "in", "some", "scene"]
_SIGNS = {"positive": ["good", "great", "lovely"], "negative": ["bad", "awful", "dull"]}


def easy_records(count: int, seed: int = 0, negative_share: float = 0.5) -> pa.Table:
    """`schema.GOLD` records whose label is told by one word among filler words."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        label = "negative" if rng.random() < negative_share else "positive"
        words = rng.choices(_WORDS, k=rng.randint(2, 12))
        words.insert(rng.randrange(len(words) + 1), rng.choice(_SIGNS[label]))
        rows.append({"id": f"r{number:05d}", "text": " ".join(words), "label": label})
    return pa.Table.from_pylist(rows, schema=GOLD)


def make_tiny_roberta(folder: str | Path, positions: int = 66) -> str:
    """Write a random encoder without a head (hidden 32, 2 layers) and its tokenizer."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizerFast

    trained = ByteLevelBPETokenizer()
    texts = easy_records(200)["text"].to_pylist()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(texts, vocab_size=400, min_frequency=1, special_tokens=special)
    Path(folder).mkdir(parents=True, exist_ok=True)
    trained.save_model(str(folder))
    tokenizer = RobertaTokenizerFast.from_pretrained(str(folder), model_max_length=positions - 2)
    tokenizer.save_pretrained(str(folder))
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=positions,
        type_vocab_size=1,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    RobertaModel(config, add_pooling_layer=False).save_pretrained(str(folder))
    return str(folder)
