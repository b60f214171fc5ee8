"""vLLM on this cluster, through ray.data.llm: prompts, engine replicas, answers."""

import contextlib
import logging
import math
import os
import uuid
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from llambert import schema
from llambert.cluster import even_share, node_cpus, resources
from llambert.engines.config import FIRST_TOKENS, AnnotateConfig, constraint, device
from llambert.engines.orphans import FOLLOW
from llambert.engines.prompts import ControlTokenError, PromptBuilder, kept_tokenizer
from llambert.errors import UserError
from llambert.progress import Counter
from llambert.task import TaskConfig

_LIGHT_CPUS = 0.25  # of a core, for the stages around the engine, which wait for it
_CPU_SHARE = 0.75  # of a core reserved for each engine worker on CPU: the rest feeds it
_MAX_NUM_SEQS = 256  # sequences that the engine works on at once
_WAITING = 2  # batches that an engine has beside those it works on
_ATTEMPTS = 2  # a batch in hand so often when its engine ends is not asked further in company
_DEADLY = 10  # records that may end the engine in one round; with more it is not the records
_KV_CACHE_MOST = 4 * 2**30  # bytes on CPU, unless VLLM_CPU_KVCACHE_SPACE says otherwise
_KV_BLOCK = 128  # tokens that vLLM's cache on CPU grows by

ENDED = f"the engine ended {_ATTEMPTS} times while it was asked this record alone"

# The engines of this driver, by their actors' names, and their placement groups, which Ray Data
# leaves until the driver ends (github.com/ray-project/ray/issues/64035): a second engine would wait
# for their GPUs. So it would for an engine that is being started again when its round ends.
_engines: list[str] = []
_groups: list[Any] = []


def ask(
    rows: Any, config: AnnotateConfig, task: TaskConfig, counter: Counter, alone: bool = False
) -> Any:
    """Ask vLLM about every row.

    Needs a connected Ray. GPUs are used where the cluster has any (`device: auto`). A block whose
    engine ends each time is an error of Ray Data's, of which `may_be_lost` says how many to bear.

    Args:
        alone: an engine has one batch in hand at a time, so that none is lost with another.

    Raises:
        UserError: the prompt does not suit the model, or the engine's settings the device.
    """
    from ray.data import TaskPoolStrategy

    _end_engines()
    window = _window(config)
    prompts = _Prompts(config, task, window - config.max_tokens)
    prompts.builder()  # what is wrong with the prompt is found out here, before any engine starts
    rows = rows.map_batches(
        prompts,
        batch_format="pyarrow",
        batch_size=None,
        compute=TaskPoolStrategy(size=_tokenizers()),
        num_cpus=_LIGHT_CPUS,
    )
    return _processor(config, task, window, alone)(rows).map_batches(
        lambda block: _responses(block, counter),
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=_LIGHT_CPUS,
    )


def may_be_lost(config: AnnotateConfig, alone: bool = False) -> int:
    """Blocks that may go unanswered because their engine ended: all that it had in hand."""
    return _DEADLY * (1 if alone else _batches(config) + _WAITING)


def _end_engines() -> None:
    """End what earlier rounds of this driver have left."""
    import ray
    from ray.util import remove_placement_group

    while _engines:
        with contextlib.suppress(ValueError):  # it is gone, as it should be
            ray.kill(ray.get_actor(_engines.pop()))
    while _groups:
        remove_placement_group(_groups.pop())


def _processor(config: AnnotateConfig, task: TaskConfig, window: int, alone: bool) -> Any:
    """Ray Data's stages around the engine, for rows that hold token ids."""
    from ray.data.llm import build_processor

    params = _sampling_params(config, task)
    logging.disable(logging.INFO)  # the build calls ray.init again, and says so
    try:
        processor = build_processor(
            _processor_config(config, device(config, resources()), window, alone),
            preprocess=lambda row: {"sampling_params": dict(params)},
            postprocess=_answer,
            preprocess_map_kwargs={"num_cpus": _LIGHT_CPUS},
            postprocess_map_kwargs={"num_cpus": _LIGHT_CPUS},
        )
    finally:
        logging.disable(logging.NOTSET)
        logging.getLogger("ray").setLevel(logging.WARNING)  # which ray.init has undone
    # An engine that dies is started again and its batches with it; without a limit a record that
    # ends the engine each time would be tried for ever.
    kwargs = processor.get_stage_by_name("vLLMEngineStage").map_batches_kwargs
    kwargs["max_task_retries"] = _ATTEMPTS - 1
    place = kwargs.get("ray_remote_args_fn")
    kwargs["ray_remote_args_fn"] = lambda: _remembered(place() if place else {})
    return processor


def _remembered(remote_args: dict[str, Any]) -> dict[str, Any]:
    """Ray's arguments for an engine, which may have a placement group, with a name for it."""
    if strategy := remote_args.get("scheduling_strategy"):
        _groups.append(strategy.placement_group)
    _engines.append(f"llambert-engine-{uuid.uuid4().hex}")
    return remote_args | {"name": _engines[-1]}


def _tokenizers() -> int:
    """Tasks that make prompts at once: few, or they would take the cores from the engine."""
    return max(1, min(16, int(resources().get("CPU", 1)) // 4))


def _window(config: AnnotateConfig) -> int:
    """Tokens of prompt and answer together."""
    if config.max_model_len:
        return config.max_model_len
    window = getattr(_text_config(config), "max_position_embeddings", None)
    if not window:
        raise UserError(
            f"the model {config.model!r} does not say how long its window is",
            "set annotate.max_model_len",
        )
    return int(window)


def _text_config(config: AnnotateConfig) -> Any:
    from transformers import AutoConfig

    found = AutoConfig.from_pretrained(config.model, trust_remote_code=config.trust_remote_code)
    return found.get_text_config()


def engine_settings(
    config: AnnotateConfig, task: TaskConfig, where: str, window: int
) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """vLLM's engine arguments, its sampling parameters and the environment that it gets.

    Args:
        where: 'cpu' or 'gpu'.
        window: tokens of prompt and answer together.
    """
    kwargs, environment = _engine_kwargs(config, where, window)
    return kwargs, _sampling_params(config, task), environment


def _sampling_params(config: AnnotateConfig, task: TaskConfig) -> dict[str, Any]:
    params: dict[str, Any] = {
        "max_tokens": config.max_tokens,
        "temperature": config.temperature,
        "top_p": config.top_p,
        "top_k": config.top_k,
        "logprobs": FIRST_TOKENS,
    }
    limits = constraint(config, task)
    return params | {"structured_outputs": limits} if limits else params


def _engine_kwargs(
    config: AnnotateConfig, where: str, window: int
) -> tuple[dict[str, Any], dict[str, str]]:
    kwargs: dict[str, Any] = {
        "tensor_parallel_size": config.tensor_parallel_size,
        "pipeline_parallel_size": config.pipeline_parallel_size,
        "max_model_len": window,
        "enable_prefix_caching": config.prefix_caching,
        "trust_remote_code": config.trust_remote_code,
        "dtype": config.dtype,
        # One stream of random numbers for the engine: a seed with each request slows sampling on
        # GPU, and on CPU it ends the engine (vLLM 0.29: "CPU Generator does not use offset").
        "seed": config.seed,
        "max_num_seqs": _MAX_NUM_SEQS,
        # Steps of twice the tokens, where the user gives none: a number of ours would end an engine
        # that cannot share a prompt out over steps and has a longer window.
        "performance_mode": "throughput",
    }
    environment = {}
    if where == "cpu":
        if config.pipeline_parallel_size > 1:  # vLLM 0.29: "intermediate_tensors is not None"
            raise UserError(
                f"annotate.pipeline_parallel_size is {config.pipeline_parallel_size}, and there is "
                "no GPU: on CPUs vLLM's engine ends at the first request of a pipeline",
                "share the layers out instead: annotate.tensor_parallel_size",
            )
        kwargs["distributed_executor_backend"] = "mp"
        kwargs["enforce_eager"] = True
        kwargs["dtype"] = "float32" if config.dtype == "auto" else config.dtype
        kwargs["kv_cache_memory_bytes"] = _kv_cache_bytes(config, window, kwargs["dtype"])
        # Binding threads to cores counts the machine's cores, not those that Ray gave.
        environment = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        told = ("VLLM_CPU_OMP_THREADS_BIND", "VLLM_CPU_KVCACHE_SPACE")
        environment |= {name: os.environ[name] for name in told if name in os.environ}
    return kwargs | config.engine_kwargs, environment


def _kv_cache_bytes(config: AnnotateConfig, window: int, dtype: str) -> int:
    """Room for keys and values of as many full windows as the engine works on at once.

    The engine writes all of it with zeros at its start: 15 s for 4 GiB on two cores.
    """
    model = _text_config(config)
    heads = model.num_attention_heads
    size = getattr(model, "head_dim", None) or model.hidden_size // heads
    kept = 2 * (getattr(model, "num_key_value_heads", None) or heads) * size  # of a token and layer
    token = model.num_hidden_layers * kept * (4 if dtype == "float32" else 2)
    blocks = (_MAX_NUM_SEQS + 1) * math.ceil(window / _KV_BLOCK)
    return min(_KV_CACHE_MOST, blocks * _KV_BLOCK * token)


def _batches(config: AnnotateConfig) -> int:
    """Batches that an engine works on at once."""
    sequences = config.engine_kwargs.get("max_num_seqs", _MAX_NUM_SEQS)
    return max(2, math.ceil(sequences / config.batch_size))


def _processor_config(config: AnnotateConfig, where: str, window: int, alone: bool) -> Any:
    from ray.data.llm import vLLMEngineProcessorConfig

    kwargs, environment = _engine_kwargs(config, where, window)
    environment[FOLLOW] = "1"
    placement = None
    if where == "cpu":
        placement = {"bundles": [{"CPU": _CPU_SHARE}] * config.devices}
        # Without it Ray gives a process a thread for each CPU that it reserves: here one
        threads = even_share(node_cpus(), config.devices * config.replicas[1])
        environment["OMP_NUM_THREADS"] = str(threads)
    batches = 1 if alone else _batches(config)
    return vLLMEngineProcessorConfig(
        model_source=config.model,
        engine_kwargs=kwargs,
        accelerator_type=config.accelerator_type,
        concurrency=config.replicas,
        batch_size=config.batch_size,
        max_concurrent_batches=batches,
        max_tasks_in_flight_per_actor=1 if alone else batches + _WAITING,
        placement_group_config=placement,
        runtime_env={"env_vars": environment},
        should_continue_on_error=True,
        log_engine_metrics=False,
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )


def prompt_builder(config: AnnotateConfig, task: TaskConfig) -> PromptBuilder:
    """What makes this model's prompts, within its window; no engine and no Ray is needed.

    Raises:
        UserError: the prompt does not suit the model.
    """
    return _builder(config, task, _window(config) - config.max_tokens)


def _builder(config: AnnotateConfig, task: TaskConfig, limit: int) -> PromptBuilder:
    return PromptBuilder(
        kept_tokenizer(config.model or "", config.trust_remote_code),
        task,
        limit,
        config.chat_template,
        config.chat_template_kwargs,
        as_json=config.parse == "json",
    )


class _Prompts:
    """Makes prompts in a worker; the tokenizer is loaded there, once a process."""

    def __init__(self, config: AnnotateConfig, task: TaskConfig, limit: int) -> None:
        self._config, self._task, self._limit = config, task, limit
        self._builder: PromptBuilder | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_builder": None}

    def builder(self) -> PromptBuilder:
        if self._builder is None:
            self._builder = _builder(self._config, self._task, self._limit)
        return self._builder

    def __call__(self, block: pa.Table) -> pa.Table:
        ids: list[list[int]] = []
        truncated, errors = [], []
        for text in block["text"].to_pylist():
            try:
                prompt = self.builder().build(text)
            except ControlTokenError as error:
                ids.append([])
                truncated.append(False)
                errors.append(f"{type(error).__name__}: {error}")
            else:
                ids.append(prompt.token_ids)
                truncated.append(prompt.truncated)
                errors.append("")
        return pa.table(
            {
                "id": block["id"],
                "text_hash": block["text_hash"],
                "truncated": truncated,
                "tokenized_prompt": pa.array(ids, pa.list_(pa.int32())),
                # A row that bears an error passes the engine by.
                "__inference_error__": errors,
            }
        )


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    """What is kept of the engine's output for one row."""
    first = (row.get("logprobs") or [{}])[0]
    return {
        "id": row["id"],
        "text_hash": row["text_hash"],
        "truncated": row["truncated"],
        "generated_text": row["generated_text"],
        "num_input_tokens": row["num_input_tokens"],
        "num_generated_tokens": row["num_generated_tokens"],
        "first_token": [
            {"token": each["decoded_token"] or "", "probability": math.exp(each["logprob"])}
            for each in first.values()
        ],
    }


def _responses(block: pa.Table, counter: Counter) -> pa.Table:
    """A block of answers and failures, which have other columns, as `schema.RESPONSE`."""

    def column(name: str) -> list[Any]:
        values = block[name].to_pylist() if name in block.column_names else None
        return values or [None] * block.num_rows

    errors = [error or None for error in column("__inference_error__")]
    failed = [error is not None for error in errors]

    def unless_failed(name: str) -> list[Any]:
        return [None if bad else value for bad, value in zip(failed, column(name), strict=True)]

    table = pa.table(
        {
            "id": column("id"),
            "text_hash": column("text_hash"),
            "response": unless_failed("generated_text"),
            "error": errors,
            "prompt_tokens": unless_failed("num_input_tokens"),
            "output_tokens": unless_failed("num_generated_tokens"),
            "truncated": column("truncated"),
            "first_token": unless_failed("first_token"),
        },
        schema=schema.RESPONSE,
    )
    tokens = ("prompt_tokens", "output_tokens")
    counter.add(table.num_rows, **{name: pc.sum(table[name]).as_py() or 0 for name in tokens})
    return table
