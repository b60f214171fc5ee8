"""Train llambert-mini-roberta: an encoder of 2.5 million parameters, on reviews without labels.

    python -m llambert.demo.recipes.mini_roberta --reviews ../shared/imdb/corpus.parquet --out DIR

Two tasks at once: the usual masked tokens (Devlin et al. 2019, as in Liu et al. 2019 without
sentence pairs), and which words the review holds, told from its first token alone. The second makes
the first token, which a classifier reads, a summary of the text from the start; masked tokens alone
leave that to fine-tuning, for which a few thousand labels are little.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llambert.demo.recipes import common
from llambert.encoder import tokenize
from llambert.forward import pad

SEED = 2024
VOCABULARY = 16_000
WIDTH, LAYERS, HEAD = 128, 2, 64
EPOCHS, BATCH_SIZE, LEARNING_RATE = 1, 32, 1e-3
WINDOW = 512  # tokens
MASKED_SHARE = 0.15
DROPOUT = 0.1  # in fine-tuning; one pass over the texts has nothing to overfit
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def make_tokenizer(texts: list[str]) -> Any:
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    backend = common.train_tokenizer(texts, VOCABULARY, SPECIAL)
    backend.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    names = {"bos": "<s>", "cls": "<s>", "pad": "<pad>", "eos": "</s>", "sep": "</s>"}
    names |= {"unk": "<unk>", "mask": "<mask>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=WINDOW,
        **{f"{name}_token": token for name, token in names.items()},
    )


def make_model(tokenizer: Any, sequences: Sequence[NDArray[np.int32]]) -> Any:
    """The model before training: noise, but for its embeddings."""
    import torch
    from transformers import RobertaConfig, RobertaForMaskedLM

    model = RobertaForMaskedLM(
        RobertaConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=WIDTH // HEAD,
            max_position_embeddings=WINDOW + 2,  # RoBERTa counts places from 2
            type_vocab_size=1,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    first = common.first_embeddings(sequences, len(tokenizer), WIDTH)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(torch.from_numpy(first))
    return model


class PretrainingLoss:
    """The loss of the masked tokens, and of the words that each text holds.

    Args:
        sequences: token ids of each text, special tokens and all.

    Attributes:
        summary: the layer from the first token to the words; of no use after pretraining.
    """

    def __init__(self, model: Any, sequences: Sequence[NDArray[np.int32]], tokenizer: Any) -> None:
        import torch

        self._model, self._sequences = model, sequences
        self._mask, self._pad = tokenizer.mask_token_id, tokenizer.pad_token_id
        holding = np.ones(len(tokenizer))  # texts that hold each token
        for each in sequences:
            holding[np.unique(each)] += 1
        rarity = np.log(len(sequences) / holding).clip(0)  # inverse document frequency
        rarity[: len(SPECIAL)] = 0
        self._rarity = torch.tensor(rarity, dtype=torch.float32)
        self.summary = torch.nn.Linear(WIDTH, WIDTH)

    def __call__(self, rows: NDArray[np.int64]) -> tuple[Any, tuple[float, float]]:
        import torch
        from torch.nn import functional

        inputs = pad([self._sequences[i] for i in rows], self._pad)
        ids = inputs["input_ids"]
        chosen = (torch.rand(ids.shape) < MASKED_SHARE) & (ids >= len(SPECIAL))
        draw = torch.rand(ids.shape)  # eight in ten are masked, one is another token, one stays
        shown = ids.masked_fill(chosen & (draw < 0.8), self._mask)
        other = torch.randint(len(SPECIAL), len(self._rarity), ids.shape)
        shown = torch.where(chosen & (draw > 0.9), other, shown)
        hidden = self._model.roberta(
            input_ids=shown, attention_mask=inputs["attention_mask"]
        ).last_hidden_state
        masked = functional.cross_entropy(self._model.lm_head(hidden[chosen]).float(), ids[chosen])
        held = self._held(hidden[:, 0], ids)
        return masked + held, (float(masked.detach()), float(held.detach()))

    def _held(self, first: Any, ids: Any) -> Any:
        """Cross entropy of the words of `ids`, weighted by rarity, as told from `first`."""
        import torch
        from torch.nn import functional

        words = torch.zeros(len(ids), len(self._rarity)).scatter_(1, ids, 1.0) * self._rarity
        words = words / words.sum(1, keepdim=True).clamp(min=1e-9)
        embeddings = self._model.get_input_embeddings().weight
        space = functional.gelu(self.summary(first))
        scores = functional.linear(space, embeddings, self._model.lm_head.bias)
        return -(words * scores.float().log_softmax(1)).sum(1).mean()


def train(reviews: str, out: Path, epochs: int) -> None:
    """Pretrain on the `text` column of a Parquet file; write the encoder to `out`."""
    import torch

    rng = common.start(SEED)
    texts = common.read_texts(reviews)
    tokenizer = make_tokenizer(texts)
    sequences = tokenize(tokenizer, texts, WINDOW)
    model = make_model(tokenizer, sequences)
    loss_of = PretrainingLoss(model, sequences, tokenizer)
    print(f"{model.num_parameters():,} parameters, {len(texts):,} reviews", flush=True)
    model.summary = loss_of.summary  # for the optimiser
    lengths = np.array([len(each) for each in sequences])
    curves: list[NDArray[np.float64]] = []
    started = time.monotonic()
    for parts in common.optimise(model, lengths, loss_of, rng, epochs, BATCH_SIZE, LEARNING_RATE):
        curves.append(parts)
        masked, held = parts.mean(axis=0)
        took = time.monotonic() - started
        print(f"masked tokens {masked:.3f}, words {held:.3f} nats, {took:.0f} s", flush=True)
    del model.summary
    model.config.hidden_dropout_prob = DROPOUT
    model.to(torch.bfloat16).save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    names = "masked tokens", "words of the text"
    common.draw_losses(out / "loss.png", names, np.concatenate(curves))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reviews", required=True, help="Parquet with text")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()
    train(arguments.reviews, arguments.out, arguments.epochs)
