"""A record's text becomes the token ids that the LLM reads: chat template, window, controls."""

import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from llambert.encoder import load_tokenizer
from llambert.errors import UserError
from llambert.task import TaskConfig, control_pattern, messages

GAP = " … "  # stands where the middle of a text was left out
_CHARACTERS_PER_TOKEN = 8  # a first cut by length; text that comes out short is done whole
_LEAST_TOKENS = 16  # of a text; with less there is nothing to judge
_BRACKETED = re.compile(r"[<\[{|].+[>\]}|]", re.DOTALL)
_MARGIN = 0.98  # of the estimated length, so that one or two attempts suffice


class Prompt(NamedTuple):
    """What the model reads for one record."""

    token_ids: list[int]
    truncated: bool  # the middle of the text was left out


class ControlTokenError(ValueError):
    """A text would put a special token into the prompt although its spelling was broken."""


def cut_middle(text: str, characters: int) -> str:
    """`text` with its middle replaced by a gap, so that `characters` of it are left."""
    if len(text) <= characters:
        return text
    head = (characters + 1) // 2
    tail = characters - head
    return text[:head] + GAP + (text[-tail:] if tail else "")


class PromptBuilder:
    """Builds prompts of at most `limit` tokens with a model's own chat template.

    Args:
        tokenizer: a Hugging Face tokenizer.
        limit: tokens that the prompt may have: the model's window less the answer.
        chat_template: Jinja text used in place of the tokenizer's template.
        template_kwargs: further variables of the template, such as enable_thinking.
        as_json: the examples' answers are JSON objects.

    Raises:
        UserError: there is no chat template, it refuses these messages, or the prompt without
            any text leaves less than 16 tokens of `limit`.
    """

    def __init__(
        self,
        tokenizer: Any,
        task: TaskConfig,
        limit: int,
        chat_template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        as_json: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._task = task
        self._limit = limit
        self._as_json = as_json
        self._template = chat_template
        self._template_kwargs = dict(template_kwargs or {})
        # Tokens such as <think> are structure without being special; added runs of white space
        # or words are not.
        added = [token for token in tokenizer.get_added_vocab() if _BRACKETED.fullmatch(token)]
        self._controls = control_pattern([*tokenizer.all_special_tokens, *added])
        # An unknown character becomes the unknown token, which has no power over the chat.
        self._special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
        if not (chat_template or tokenizer.chat_template):
            raise UserError(
                f"the tokenizer of {tokenizer.name_or_path!r} has no chat template: is it a base "
                "model?",
                "name a chat (instruct) model, or give annotate.chat_template",
            )
        empty = self._try_template()
        self._base_tokens = max(len(empty), len(self._encode(GAP)))
        if limit - self._base_tokens < _LEAST_TOKENS:
            raise UserError(
                f"the prompt without any text has {self._base_tokens} tokens, and the model's "
                f"window leaves {limit} for it and for at least {_LEAST_TOKENS} tokens of text",
                "shorten the prompt or the examples, lower annotate.max_tokens, or raise "
                "annotate.max_model_len",
            )
        self._structure = self._specials(empty)

    def build(self, text: str) -> Prompt:
        """The prompt for `text`; where it is too long, head and tail of the text are kept.

        Tokenization costs time by the length of the whole text, so a long text is cut by
        characters first; where that cut leaves room in the window the whole text is tokenized.

        Raises:
            ControlTokenError: the text still holds one of the tokenizer's special tokens.
        """
        keep, first = min(len(text), self._limit * _CHARACTERS_PER_TOKEN), True
        while True:
            kept = cut_middle(text, keep)
            ids = self._encode(kept)
            fits = len(ids) <= self._limit
            if fits and first and kept != text:
                keep = len(text)
            elif fits:
                break
            else:  # ends at the latest with the gap alone, which has room
                share = (self._limit - self._base_tokens) / (len(ids) - self._base_tokens)
                keep = max(0, min(keep - 1, int(keep * share * _MARGIN)))
            first = False
        if self._specials(ids) != self._structure:
            raise ControlTokenError("the text holds a special token of the model")
        return Prompt(ids, kept != text)

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.apply_chat_template(
            messages(self._task, text, self._controls, self._as_json),
            chat_template=self._template,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=False,
            **self._template_kwargs,
        )

    def _specials(self, ids: list[int]) -> Counter[int]:
        return Counter(token for token in ids if token in self._special)

    def _try_template(self) -> list[int]:
        import jinja2

        try:
            return self._encode("")
        except jinja2.TemplateError as error:
            raise UserError(
                f"the chat template of {self._tokenizer.name_or_path!r} refuses the prompt: "
                f"{error}",
                "some models take no system message: move task.system into task.prompt, or give "
                "annotate.chat_template",
            ) from error


@lru_cache(maxsize=2)
def kept_tokenizer(model: str, trust_remote_code: bool) -> Any:
    """The model's tokenizer, kept for the life of the process."""
    return load_tokenizer(model, trust_remote_code)
