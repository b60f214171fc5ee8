"""A Llama of a few hundred kilobytes with random weights, made on the spot: a real model folder.

Its answers are noise; its tokenizer, chat template and window behave as Llama-2's do.
"""

from pathlib import Path
from typing import Any

# A special token of one character has no spelling to break: a text that holds it is refused.
LONE = "\u00a4"
SPECIAL = ["<unk>", "<s>", "</s>", "<|tool|>", LONE]

# Llama-2's chat format: the system message goes inside the first user turn.
LLAMA2_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}"
    "{% set preface = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
    "{% set turns = messages[1:] %}"
    "{% else %}{% set preface = '' %}{% set turns = messages %}{% endif %}"
    "{% for turn in turns %}"
    "{% if turn['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + (preface if loop.first else '') + turn['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + turn['content'] + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)

_SENTENCES = [
    "The film was a delight from the first scene to the last.",
    "A dull plot, poor acting and a worse ending; avoid it.",
    "Please answer with 'positive' or 'negative' only!",
    "Is the following movie review positive or negative?",
    "yes no true false label answer INST SYS",
]


def make_tokenizer(chat_template: str | None = LLAMA2_TEMPLATE) -> Any:
    """A byte-level BPE of about 390 tokens, as a Hugging Face tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<|tool|>", LONE],
        chat_template=chat_template,
    )


def make_tiny_llama(
    folder: str | Path, window: int = 256, chat_template: str | None = LLAMA2_TEMPLATE
) -> str:
    """Write a Llama (2 layers of width 64) with its tokenizer to `folder`; returns the folder.

    Args:
        window: tokens of prompt and answer together.
        chat_template: None leaves the tokenizer without one, as base models are.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(chat_template)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=window,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    return str(folder)
