"""The base of every part of the configuration, and what several parts name alike."""

import os
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo

SECRET = re.compile(  # words between underscores: MAX_TOKENS and TOKENIZER are no secrets
    r"(?:^|_)(?:TOKEN|SECRETS?|PASSWORD|PASSWD|CREDENTIALS?|(?:API|ACCESS|SECRET|PRIVATE)_?KEY)(?:_|$)",
    re.IGNORECASE,
)
"""What the name of a secret looks like, which a run file must not hold."""


class Section(BaseModel):
    """A frozen pydantic model that refuses fields it does not know, infinity and NaN."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )


def _absolute(value: str, info: ValidationInfo) -> str:
    """Relative paths are relative to the configuration file, whose folder is `info.context`.

    A file:// URI becomes the path it names, which not everything that reads files could do.
    """
    value = value.removeprefix("file://")
    if "://" in value:
        return value
    base = (info.context or {}).get("base", os.getcwd())
    return os.path.normpath(os.path.join(base, os.path.expanduser(value)))


def model_place(value: str, info: ValidationInfo) -> str:
    """A local folder is just another model name: it is taken for one where it exists."""
    absolute = _absolute(value, info)
    if value.startswith((".", "/", "~", "file://")) or os.path.isdir(absolute):
        return absolute
    return value


Location = Annotated[str, AfterValidator(_absolute)]
"""A local path, made absolute, or a URI such as s3://bucket/folder."""

ModelName = Annotated[str, AfterValidator(model_place)]
"""A Hugging Face hub name, or a local folder, made absolute."""

Variant = Literal["baseline", "llambert", "combined"]
"""What an encoder is trained on: gold labels, the LLM's, or the LLM's and then gold."""
