"""The configuration of the LLM: which engine, which model, how it answers."""

import os
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from llambert.cluster import Workers, kind_of_gpu
from llambert.errors import UserError
from llambert.models import check_model, fingerprint_model
from llambert.parse import Mode
from llambert.records import Corpus, CorpusConfig, Fields, named_files, open_corpus
from llambert.section import SECRET, Location, Section, model_place
from llambert.storage import fingerprint, public
from llambert.task import TaskConfig, shown_examples

# Arguments of the engine that change its speed or memory but not what it is asked or answers.
_SPEED_ONLY = {
    "async_scheduling",
    "block_size",
    "compilation_config",
    "cpu_offload_gb",
    "data_parallel_size",
    "disable_custom_all_reduce",
    "disable_log_stats",
    "distributed_executor_backend",
    "download_dir",
    "enable_chunked_prefill",
    "enable_expert_parallel",
    "enforce_eager",
    "gpu_memory_utilization",
    "kv_cache_memory_bytes",
    "max_num_batched_tokens",
    "max_num_partial_prefills",
    "max_num_seqs",
    "max_parallel_loading_workers",
    "num_gpu_blocks_override",
    "performance_mode",
    "scheduling_policy",
}

_OWN = {  # engine arguments that have a field of their own
    "model": "model",
    "seed": "seed",
    "dtype": "dtype",
    "max_model_len": "max_model_len",
    "tensor_parallel_size": "tensor_parallel_size",
    "pipeline_parallel_size": "pipeline_parallel_size",
    "enable_prefix_caching": "prefix_caching",
    "trust_remote_code": "trust_remote_code",
}

_VLLM_ONLY = (  # fields that the other engines have no use for
    "chat_template",
    "max_model_len",
    "device",
    "accelerator_type",
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "replicas",
    "dtype",
    "prefix_caching",
    "engine_kwargs",
    "trust_remote_code",
)
# Fields that recorded answers have no use for, beside those
_ASKING = (
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "structured",
    "chat_template_kwargs",
)

FIRST_TOKENS = 20  # candidates kept for the first token of an answer; vLLM's and OpenAI's most


class OpenAIConfig(Section):
    """An endpoint that speaks OpenAI's chat completions."""

    base_url: str | None = Field(
        None, description="The endpoint, such as http://host:8000/v1; OpenAI's own where absent."
    )
    api_key_env: str | None = Field(
        "OPENAI_API_KEY",
        description="NAME of the environment variable that holds the key; null for an endpoint "
        "that asks for none. The key itself never stands in a config.",
    )
    concurrency: int = Field(32, description="Requests in flight at once.", ge=1)
    timeout_s: float = Field(120.0, description="Seconds to wait for one answer.", gt=0)
    max_retries: int = Field(
        6,
        description="Further attempts after HTTP 408, 409, 429 or 5xx, a timeout or a broken "
        "connection; none where the endpoint asks to wait for more than two minutes.",
        ge=0,
    )
    token_limit: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="What the endpoint calls the longest answer."
    )
    first_token: bool = Field(
        True,
        description="Ask for log-probabilities of the first token, which give the confidence; some "
        "models refuse, and an answer in JSON has none: it begins with a bracket.",
    )
    max_text_chars: int | None = Field(
        None,
        description="Longer texts lose their middle, in characters; no limit where absent: a "
        "prompt beyond the endpoint's window is a failed request.",
        ge=1,
    )

    @field_validator("base_url")
    @classmethod
    def _holds_no_key(cls, url: str | None) -> str | None:
        if url and (public(url) != url or "?" in url):
            raise ValueError(  # without the value
                "holds a user, a password or a query, which would be stored: export the key in an "
                "environment variable and name it in annotate.openai.api_key_env"
            )
        return url

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(  # without the value, which may be the key itself
                "is not the name of an environment variable: export the key in one and give "
                "its NAME, such as OPENAI_API_KEY"
            )
        return name


class RecordedConfig(Section):
    """Answers that exist already: a table of id and response."""

    path: Location = Field(description="File or folder of the table.")
    format: Literal["parquet", "jsonl", "csv"] | None = Field(
        None, description="Format of the files; by default told from their names."
    )
    id: str = Field("id", description="Column of the record's id.")
    text: str | None = Field(
        None,
        description="Column of the text that was answered. Where given, answers are found by text "
        "and not by id: for a corpus and gold records that use the same ids for different texts.",
    )
    response: str = Field("response", description="Column of the response.")

    def table(self) -> Corpus:
        """The table, read as a corpus whose texts are the responses; `text` is a further column.

        Raises:
            UserError: no such table or column.
        """
        key = None if self.text else self.id  # by text, rows of one id may be two records'
        source = CorpusConfig(path=self.path, format=self.format, id=key, text=self.response)
        names = (f"annotate.recorded.{name}" for name in ("path", "id", "response", "text"))
        extra = [self.text] if self.text else []
        return open_corpus(source, extra=extra, fields=Fields(*names))


class AnnotateConfig(Section):
    """The LLM that annotates the sample."""

    engine: Literal["vllm", "openai", "recorded"] = Field(
        "vllm",
        description="vllm runs the model on this cluster; openai asks an endpoint over "
        "HTTP; recorded takes existing answers from a table.",
    )
    model: str | None = Field(
        None, description="Hub name or local folder (vllm), or the endpoint's name (openai)."
    )
    parse: Mode = Field(
        "answer",
        description="How a response becomes a label: answer (one label and nothing else, case and "
        "punctuation aside), mention (one label among other words; 'not good' is good then), "
        "exact, json.",
    )
    max_tokens: int = Field(10, description="Longest answer, in tokens.", ge=1)
    temperature: float = Field(0.0, description="0 takes the likeliest token each time.", ge=0)
    top_p: float = Field(1.0, description="Share of probability that is sampled from.", gt=0, le=1)
    top_k: int = Field(-1, description="Number of tokens sampled from; -1: all.", ge=-1)
    seed: int = Field(
        0,
        description="Seed of the sampling at temperature > 0; with vllm the draws also hang on "
        "which requests fall together.",
    )
    structured: bool = Field(
        False,
        description="Constrain the answer to the labels, or, with parse: json, to an object with "
        "one of them under 'label'. The openai engine can do the latter only.",
    )
    chat_template: str | None = Field(
        None, description="Jinja text in place of the template of the model's tokenizer (vllm)."
    )
    chat_template_kwargs: dict[str, Any] = Field(
        {}, description="Variables of the chat template, such as enable_thinking: false."
    )
    max_model_len: int | None = Field(
        None,
        description="Window in tokens, prompt and answer together; the model's where absent.",
        ge=2,
    )
    device: Literal["auto", "gpu", "cpu"] = Field(
        "auto", description="Where vLLM runs; auto: on GPUs where the cluster has any."
    )
    accelerator_type: str | None = Field(
        None, description="Kind of GPU to use where the cluster has several, in Ray's spelling."
    )
    tensor_parallel_size: int = Field(1, description="Devices that share each layer.", ge=1)
    pipeline_parallel_size: int = Field(1, description="Groups of devices in sequence.", ge=1)
    replicas: tuple[int, int] = Field(
        (1, 1), description="Fewest and most copies of the model at once."
    )
    batch_size: int = Field(
        32,
        description="Records handed to the engine together; openai: at most "
        "a quarter of `concurrency`, from 4 on, as a crash loses the batches in hand.",
        ge=1,
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Weights' type; auto: the model's own on GPU, float32 on CPU."
    )
    prefix_caching: bool = Field(
        True, description="Compute the part that all prompts begin with only once."
    )
    trust_remote_code: bool = Field(False, description="Run code that comes with the model.")
    engine_kwargs: dict[str, Any] = Field(
        {},
        description="Further vLLM engine arguments, such as gpu_memory_utilization or "
        "max_num_seqs. Those that set memory or schedule do not make another annotator.",
    )
    gold_records: int = Field(
        500,
        description="Gold test records that the LLM answers too, to be measured by; a cascade "
        "asks at most as many more, of those that the encoder doubts.",
        ge=0,
    )
    max_failed_share: float = Field(
        0.05,
        description="Share of the records, sample and gold together, whose requests may fail; with "
        "more the stage ends in an error, and the next run asks those again. It does so in any "
        "case where all have failed.",
        ge=0,
        le=1,
    )
    openai: OpenAIConfig = Field(OpenAIConfig(), description="Settings of the openai engine.")
    recorded: RecordedConfig | None = Field(None, description="Settings of the recorded engine.")

    @field_validator("model")
    @classmethod
    def _place(cls, model: str | None, info: ValidationInfo) -> str | None:
        """Of vllm it may be a local folder; an endpoint's name is just a name."""
        return model_place(model, info) if model and info.data.get("engine") == "vllm" else model

    @field_validator("replicas")
    @classmethod
    def _range(cls, replicas: tuple[int, int]) -> tuple[int, int]:
        low, high = replicas
        if not 1 <= low <= high:
            raise ValueError(f"[{low}, {high}] is no range: write [fewest, most], from 1 up")
        return replicas

    @model_validator(mode="after")
    def _engine_has_its_settings(self) -> "AnnotateConfig":
        if self.engine == "recorded":
            if self.recorded is None:
                raise ValueError("engine recorded needs annotate.recorded.path")
        elif not self.model:
            raise ValueError(f"engine {self.engine} needs annotate.model")
        if self.engine == "openai" and self.structured and self.parse != "json":
            raise ValueError(
                "structured output over HTTP is a JSON object: set parse: json, and ask in the "
                'prompt for {"label": …}'
            )
        unused = {"vllm": (), "openai": _VLLM_ONLY, "recorded": _VLLM_ONLY + _ASKING}[self.engine]
        idle = [n for n in unused if getattr(self, n) != type(self).model_fields[n].default]
        if idle:
            raise ValueError(
                f"{idle[0]} does nothing with engine {self.engine}: leave it out, or set another "
                "engine"
            )
        further = [*self.engine_kwargs, *self.chat_template_kwargs]
        if secrets := [name for name in further if SECRET.search(name)]:
            raise ValueError(
                f"{secrets[0]!r} looks like a secret, and would be stored: vLLM takes those from "
                "the environment (HF_TOKEN)"
            )
        own = sorted(set(_OWN) & set(self.engine_kwargs))
        if own:
            raise ValueError(f"engine_kwargs has {own[0]!r}: set annotate.{_OWN[own[0]]} instead")
        if self.max_model_len is not None and self.max_model_len <= self.max_tokens:
            raise ValueError(
                f"max_model_len {self.max_model_len} leaves no room for a prompt beside "
                f"max_tokens {self.max_tokens}"
            )
        return self

    @property
    def devices(self) -> int:
        """Devices (GPUs, or CPU cores where there is none) of one replica."""
        return self.tensor_parallel_size * self.pipeline_parallel_size

    @property
    def setup(self) -> dict[str, Any]:
        """What the speed depends on beside `annotator_id`, as JSON has it."""
        named = {"batch_size", *_VLLM_ONLY} - {"replicas"}
        kept = self.model_dump(mode="json", include=named)
        return kept | {"concurrency": self.openai.concurrency}


def label_schema(task: TaskConfig) -> dict[str, Any]:
    """The JSON schema of an answer with one of the task's labels under 'label'."""
    return {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": list(task.labels)}},
        "required": ["label"],
        "additionalProperties": False,
    }


def constraint(config: AnnotateConfig, task: TaskConfig) -> dict[str, Any] | None:
    """What a structured answer must be: a choice of labels or a JSON schema; None: free text."""
    if not config.structured:
        return None
    return {"json": label_schema(task)} if config.parse == "json" else {"choice": list(task.labels)}


def annotator_id(config: AnnotateConfig, task: TaskConfig) -> str:
    """The fingerprint of all that determines the responses.

    The parse mode, the labels of a free-text answer and the way the engine is spread over
    machines are not part of it: changing them keeps the answers already paid for. But for the
    examples' answers, which are JSON with `parse: json`.
    """
    asked: dict[str, Any] = {
        "engine": config.engine,
        "system": task.system,
        "prompt": task.prompt,
        "examples": shown_examples(task, config.parse == "json"),
    }
    if config.engine == "recorded":
        assert config.recorded is not None
        files = named_files([config.recorded.path], "annotate.recorded.path")
        return fingerprint({"recorded": config.recorded.model_dump(), "files": files})
    fields = {"max_tokens", "temperature", "top_p", "top_k", "seed", "chat_template_kwargs"}
    asked |= {"sampling": config.model_dump(include=fields), "constraint": constraint(config, task)}
    if config.engine == "openai":
        endpoint = {
            "base_url": config.openai.base_url and config.openai.base_url.rstrip("/"),
            "max_text_chars": config.openai.max_text_chars,
        }
        return fingerprint(asked | {"model": config.model, "openai": endpoint})
    fields = {"chat_template", "max_model_len", "dtype"}
    further = {k: v for k, v in config.engine_kwargs.items() if k not in _SPEED_ONLY}
    asked |= {"model": fingerprint_model(config.model or ""), "engine_kwargs": further}
    return fingerprint(asked | config.model_dump(include=fields))


def check(config: AnnotateConfig, task: TaskConfig) -> None:
    """Find out in a second or two what can be wrong before anything heavy starts.

    Raises:
        UserError: no such model, table or column, or the variable of the key is not set.
    """
    if config.engine == "vllm":
        check_model(config.model or "", "annotate.model")
    elif config.engine == "openai":
        name = config.openai.api_key_env
        if name and not os.environ.get(name):
            raise UserError(
                f"annotate.openai.api_key_env: the environment variable {name} is not set",
                f"export {name}, or set api_key_env: null for an endpoint that asks for no key",
            )
    else:
        assert config.recorded is not None
        config.recorded.table()


def device(config: AnnotateConfig, have: Mapping[str, float]) -> Literal["gpu", "cpu"]:
    """Where vLLM runs on a cluster that has `have` (Ray's resources: CPU, GPU, …)."""
    if config.device == "auto":
        return "gpu" if have.get("GPU", 0) > 0 else "cpu"
    return config.device


def required_resources(config: AnnotateConfig, have: Mapping[str, float]) -> Workers:
    """What the fewest replicas asked for hold on a cluster that has `have`.

    An engine worker is a GPU, or a CPU core where there are none; the other engines ask for less
    than a core.
    """
    if config.engine != "vllm":
        return Workers(0, {})
    each = {device(config, have).upper(): 1.0} | kind_of_gpu(config.accelerator_type)
    return Workers(config.devices * config.replicas[0], each)
