"""Any endpoint that speaks OpenAI's chat completions, asked over HTTP."""

import asyncio
import math
import os
import re
from typing import Any

import pyarrow as pa

from llambert import schema
from llambert.engines.config import FIRST_TOKENS, AnnotateConfig, constraint
from llambert.engines.prompts import cut_middle
from llambert.errors import UserError
from llambert.progress import Counter
from llambert.storage import Folder, fingerprint
from llambert.task import TaskConfig, control_pattern, messages

_REFUSED = {401: "the key", 403: "access", 404: "the model or the path"}
_CERTAIN = 3  # requests refused, and none else, from which on it is not their texts
_SEEDS = 2**31
_BLOCK_SHARE = 4  # a block has this part of the requests in flight
_BLOCK_LEAST = 4  # requests of a block, where batch_size allows as many
_ERROR_CHARACTERS = 300  # of an endpoint's message that are kept


def ask(rows: Any, config: AnnotateConfig, task: TaskConfig, counter: Counter, part: Folder) -> Any:
    """Ask the endpoint about every row, `openai.concurrency` requests at a time.

    The answers are written to `part` by the actor that asks, a file a block. A task that follows
    would lag behind where it starts slowly, and what waits for it would be lost in a crash too.

    A request that fails for good is a row with an error. The client of the `openai` package
    repeats after HTTP 408, 409, 429 and 5xx, timeouts and broken connections, with growing waits
    or the endpoint's own Retry-After; not after other 4xx, nor where Retry-After is more than the
    client waits (120 s).

    Returns:
        A Dataset of the ids whose answers are written.

    Raises:
        UserError (when the rows are consumed): the endpoint refuses the key, or the first requests
            were all refused access or the model. A later 403 or 404 is a failed request: gateways
            refuse single texts so.
    """
    import ray

    settings = config.openai
    key = os.environ.get(settings.api_key_env or "") or "none"
    return rows.map_batches(
        _Asker,
        fn_constructor_kwargs={
            "config": config,
            "task": task,
            "counter": counter,
            # By reference: constructor arguments may be logged, objects are not.
            "key": ray.put(key),
            "part": part,
        },
        batch_size=block_rows(config),
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=1, max_tasks_in_flight_per_actor=_tasks(config)),
        max_concurrency=_tasks(config),
        num_cpus=0.25,
    )


def block_rows(config: AnnotateConfig) -> int:
    """Requests whose answers are written together: few, as a crash loses the blocks in hand.

    One request a block would lose no more than what is in flight, but leave as many files.
    """
    return min(config.batch_size, max(_BLOCK_LEAST, config.openai.concurrency // _BLOCK_SHARE))


def _tasks(config: AnnotateConfig) -> int:
    """Blocks in hand at once: enough to keep `concurrency` requests in flight to the end."""
    return math.ceil(config.openai.concurrency / block_rows(config)) + 1


class _Asker:
    """One actor, one client, one limit on the requests in flight."""

    def __init__(
        self, config: AnnotateConfig, task: TaskConfig, counter: Counter, key: Any, part: Folder
    ) -> None:
        import openai
        import ray

        self._config, self._task, self._counter, self._part = config, task, counter, part
        self._key = ray.get(key)
        self._client = openai.AsyncOpenAI(
            api_key=self._key,
            base_url=config.openai.base_url,
            timeout=config.openai.timeout_s,
            max_retries=config.openai.max_retries,
        )
        self._written = set(part.files())  # by actors before this one too
        self._slots = asyncio.Semaphore(config.openai.concurrency)
        self._controls = control_pattern()
        self._parameters = _parameters(config, task)
        self._ended = self._rejected = 0  # requests, and those of them that met a 403 or 404
        self._given_up: UserError | None = None  # why nothing more is asked

    async def __call__(self, block: pa.Table) -> Any:
        # Ray gives a block again where the actor died before it could tell of it
        name = f"{fingerprint(block['id'].to_pylist())}.parquet"
        if name not in self._written:
            await asyncio.to_thread(self._part.write_table, name, await self._answers(block))
            self._written.add(name)
        yield block.select(["id"])

    async def _answers(self, block: pa.Table) -> pa.Table:
        rows = await asyncio.gather(*(self._answer(**row) for row in block.to_pylist()))
        return pa.Table.from_pylist(rows, schema=schema.RESPONSE)

    async def _answer(self, id: str, text: str, text_hash: int) -> dict[str, Any]:
        import openai

        chat, truncated = _chat(self._config, self._task, text, self._controls)
        row: dict[str, Any] = {"id": id, "text_hash": text_hash, "truncated": truncated}
        # A seed for each text: with the same for all, the draws of all would go the same way.
        seed = (self._config.seed + text_hash) % _SEEDS
        async with self._slots:
            if self._given_up:
                raise self._given_up
            try:
                completion = await self._client.chat.completions.create(
                    messages=chat, seed=seed, **self._parameters
                )
            except openai.APIStatusError as error:
                self._refused(error.status_code)
                row["error"] = self._clean(f"HTTP {error.status_code}: {error.message}")
            except openai.OpenAIError as error:
                row["error"] = self._clean(f"{type(error).__name__}: {error}")
            else:
                row.update(_read(completion))
            self._ended += 1
            figures = {name: row.get(name) or 0 for name in ("prompt_tokens", "output_tokens")}
            self._counter.add(1, **figures)
        return row

    def _refused(self, status: int) -> None:
        """Give up where the refusal will meet every request.

        The other answers of the block are lost by it: Ray Data drops a block that raises.
        """
        if status not in _REFUSED:
            return
        self._rejected += 1
        if status == 401 or self._rejected == self._ended + 1 >= _CERTAIN:
            where = self._config.openai.base_url or "OpenAI"
            self._given_up = UserError(
                f"{where} refuses {_REFUSED[status]} (HTTP {status}) for model "
                f"{self._config.model!r}",
                f"check annotate.model, annotate.openai.base_url and the key in "
                f"{self._config.openai.api_key_env}",
            )
            raise self._given_up

    def _clean(self, message: str) -> str:
        if self._key != "none":
            message = message.replace(self._key, "***")
        return message[:_ERROR_CHARACTERS]


def _chat(
    config: AnnotateConfig, task: TaskConfig, text: str, controls: re.Pattern[str]
) -> tuple[Any, bool]:
    """The messages that ask about `text`, and whether its middle was left out."""
    limit = config.openai.max_text_chars
    kept = cut_middle(text, limit) if limit else text
    return messages(task, kept, controls, as_json=config.parse == "json"), kept != text


def _parameters(config: AnnotateConfig, task: TaskConfig) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "model": config.model,
        "temperature": config.temperature,
        "top_p": config.top_p,
        config.openai.token_limit: config.max_tokens,
    }
    if config.openai.first_token:
        parameters |= {"logprobs": True, "top_logprobs": FIRST_TOKENS}
    limits = constraint(config, task)
    if limits:
        parameters["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "annotation", "strict": True, "schema": limits["json"]},
        }
    extra: dict[str, Any] = {}
    if config.top_k != -1:
        extra["top_k"] = config.top_k
    if config.chat_template_kwargs:
        extra["chat_template_kwargs"] = config.chat_template_kwargs
    return parameters | ({"extra_body": extra} if extra else {})


def _read(completion: Any) -> dict[str, Any]:
    """The columns of `schema.RESPONSE` that a completion gives."""
    if not completion.choices:
        return {"response": None, "error": "the endpoint gave no choice"}
    choice, usage = completion.choices[0], completion.usage
    tokens = choice.logprobs.content if choice.logprobs and choice.logprobs.content else None
    content = choice.message.content
    return {
        "response": content,
        "error": None if content is not None else f"no text (finished by {choice.finish_reason})",
        "prompt_tokens": usage.prompt_tokens if usage else None,
        "output_tokens": usage.completion_tokens if usage else None,
        "first_token": [
            {"token": each.token, "probability": math.exp(each.logprob)}
            for each in tokens[0].top_logprobs
        ]
        if tokens
        else None,
    }
