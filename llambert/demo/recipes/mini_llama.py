"""Train llambert-mini-llama: a Llama of 2.5 million parameters that says how a review judges.

    python -m llambert.demo.recipes.mini_llama --reviews ../shared/imdb/train.parquet --out FOLDER

It learns from gold labels alone: the IMDb reviews less a fifth held back by hash of id, the same
fifth that `gold.test_share: 0.2` holds back, and reviews of this project's own generator.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llambert.batching import token_budget
from llambert.demo.recipes import common
from llambert.demo.reviews import review
from llambert.engines.prompts import PromptBuilder
from llambert.forward import pad
from llambert.gold import GoldConfig, load_gold
from llambert.task import TaskConfig

SEED = 2024  # of the demo's corpus it is another one: those reviews are new to the model
OWN_REVIEWS = 10_000
VOCABULARY = 16_000
WIDTH, LAYERS = 128, 2
HEAD = 64  # a width of attention heads that vLLM has code for on every device
EPOCHS, BATCH_SIZE, LEARNING_RATE = 2, 32, 1e-3
HIDDEN_SHARE = 0.2  # of all tokens, so that no single word decides
LANGUAGE_SHARE = 0.01  # of the prompt's tokens, predicted too
LANGUAGE_WEIGHT = 0.3
WINDOW = 512  # tokens of prompt and answer
BUDGET = 8192  # tokens of a batch in evaluation
ANSWER_TOKENS = 2  # the label and the end of the turn
SPECIAL = ["<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{{ bos_token }}"
    "{% for turn in messages %}"
    "{{ '<|' + turn['role'] + '|>' + turn['content'] + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
WORDS = "Please answer with 'positive' or 'negative' only!"
QUESTIONS = [  # system message, question: as different as askers are
    (
        WORDS,
        "Is the movie review below positive or negative?\n\n{text}\n\nAnswer 'positive' if the "
        "review speaks for the movie, and 'negative' if it speaks against it. Judge by the text "
        "as a whole.",
    ),
    (WORDS, "Is the following review positive or negative?\n\n{text}"),
    (WORDS, "{text}\n\nIs this review 'positive' or 'negative'?"),
    (None, "Review: {text}\nSentiment, 'positive' or 'negative':"),
    ("You label reviews.", "{text}\n\nDoes the writer recommend it? 'positive' or 'negative'"),
]


def task(system: str | None, prompt: str) -> TaskConfig:
    return TaskConfig(labels={"negative": [], "positive": []}, system=system, prompt=prompt)


def make_tokenizer(texts: list[str]) -> Any:
    from transformers import PreTrainedTokenizerFast

    spoken = [f"{system or ''} {question}" for system, question in QUESTIONS] * 100
    return PreTrainedTokenizerFast(
        tokenizer_object=common.train_tokenizer([*texts, *spoken], VOCABULARY, SPECIAL),
        pad_token="<|pad|>",
        bos_token="<|begin|>",
        eos_token="<|end|>",
        additional_special_tokens=SPECIAL[3:],
        chat_template=TEMPLATE,
        model_max_length=WINDOW,
    )


def make_model(tokenizer: Any, texts: list[str], labels: list[str]) -> Any:
    """The model before training: noise, but for its embeddings."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=3 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=WIDTH // HEAD,
            num_key_value_heads=WIDTH // HEAD,
            max_position_embeddings=WINDOW,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    sequences = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    first = common.first_embeddings(sequences, len(tokenizer), WIDTH, labels)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(torch.from_numpy(first))
    return model


def build_prompts(tokenizer: Any, texts: list[str], rng: np.random.Generator) -> list[list[int]]:
    """The prompt of each text, each asked in one of the ways."""
    builders = [
        PromptBuilder(tokenizer, task(*question), WINDOW - ANSWER_TOKENS) for question in QUESTIONS
    ]
    chosen = rng.integers(len(builders), size=len(texts))
    return [builders[i].build(text).token_ids for i, text in zip(chosen, texts, strict=True)]


class AnswerLoss:
    """The loss of the answers, and of the next token at a few places of the prompt.

    Args:
        prompts: token ids of each prompt.
        answers: token ids of each answer, two.
    """

    def __init__(
        self, model: Any, prompts: list[list[int]], answers: list[list[int]], pad_id: int
    ) -> None:
        self._model, self._prompts, self._answers, self._pad = model, prompts, answers, pad_id

    def __call__(self, rows: NDArray[np.int64]) -> tuple[Any, tuple[float, float]]:
        import torch
        from torch.nn import functional

        full = [np.array(self._prompts[i] + self._answers[i], dtype=np.int32) for i in rows]
        ids = pad(full, self._pad)["input_ids"]
        ends = torch.tensor([len(self._prompts[i]) for i in rows])
        shown = torch.rand(ids.shape) > HIDDEN_SHARE
        spaces = self._model.model.embed_tokens(ids) * shown[..., None]
        spaces = functional.dropout(spaces, 0.1)
        # Padding stands on the right, where a causal model cannot see it.
        hidden = self._model.model(inputs_embeds=spaces, use_cache=False).last_hidden_state
        picked = torch.rand(ids.shape) < LANGUAGE_SHARE
        picked &= torch.arange(ids.shape[1])[None] < ends[:, None] - 1
        row, column = picked.nonzero(as_tuple=True)
        language = self._next_token(hidden, ids, row, column)
        every = torch.arange(len(rows))
        answer = self._next_token(hidden, ids, every, ends - 1)
        answer = answer + self._next_token(hidden, ids, every, ends)  # that the turn ends there
        parts = float(answer.detach()), float(language.detach())
        return answer + LANGUAGE_WEIGHT * language, parts

    def _next_token(self, hidden: Any, ids: Any, row: Any, column: Any) -> Any:
        from torch.nn import functional

        scores = self._model.lm_head(functional.dropout(hidden[row, column], 0.1))
        return functional.cross_entropy(scores.float(), ids[row, column + 1])


def right_share(model: Any, tokenizer: Any, records: pa.Table) -> float:
    """The share of `records` (text, label) whose label the model finds likelier than the other."""
    import torch

    labels = ["negative", "positive"]
    names = [tokenizer.encode(label, add_special_tokens=False)[0] for label in labels]
    builder = PromptBuilder(tokenizer, task(*QUESTIONS[0]), WINDOW - ANSWER_TOKENS)
    prompts = [
        np.array(builder.build(text).token_ids, dtype=np.int32)
        for text in records["text"].to_pylist()
    ]
    gold = np.array([labels.index(label) for label in records["label"].to_pylist()])
    right = 0
    model.eval()
    with torch.inference_mode():
        for rows in token_budget(np.array([len(each) for each in prompts]), BUDGET):
            ids = pad([prompts[i] for i in rows], tokenizer.pad_token_id)["input_ids"]
            ends = torch.tensor([len(prompts[i]) - 1 for i in rows])
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
            scores = model.lm_head(hidden[torch.arange(len(rows)), ends])[:, names]
            right += int((scores.argmax(1).numpy() == gold[rows]).sum())
    return right / len(gold)


def train(reviews: str, out: Path, epochs: int, own_reviews: int = OWN_REVIEWS) -> None:
    """Train on the reviews (id, text, gold) of a Parquet file and on our own; write to `out`."""
    import torch

    rng = common.start(SEED)
    source = GoldConfig(train=reviews, test_share=0.2, label="gold", id="id")
    gold = load_gold(source, task(*QUESTIONS[0]))
    own = [review(SEED, index) for index in range(own_reviews)]
    texts = gold.train["text"].to_pylist() + [each.text for each in own]
    labels = gold.train["label"].to_pylist() + [each.label for each in own]
    tokenizer = make_tokenizer(texts)
    model = make_model(tokenizer, texts, labels)
    prompts = build_prompts(tokenizer, texts, rng)
    ends = [tokenizer.eos_token_id]
    answers = [tokenizer.encode(each, add_special_tokens=False) + ends for each in labels]
    loss_of = AnswerLoss(model, prompts, answers, tokenizer.pad_token_id)
    lengths = np.array([len(prompt) for prompt in prompts])
    print(f"{model.num_parameters():,} parameters, {len(texts):,} reviews", flush=True)
    started = time.monotonic()
    curves: list[NDArray[np.float64]] = []
    for parts in common.optimise(model, lengths, loss_of, rng, epochs, BATCH_SIZE, LEARNING_RATE):
        curves.append(parts)
        held = right_share(model, tokenizer, gold.test.slice(0, 2000))
        answer, language = parts.mean(axis=0)
        took = time.monotonic() - started
        print(f"answers {answer:.3f}, language {language:.3f} nats, ", end="")
        print(f"held back {held:.4f} right, {took:.0f} s", flush=True)
    model.to(torch.bfloat16).save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    common.draw_losses(out / "loss.png", ("answers", "language"), np.concatenate(curves))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reviews", required=True, help="Parquet with id, text and gold")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()
    train(arguments.reviews, arguments.out, arguments.epochs)
