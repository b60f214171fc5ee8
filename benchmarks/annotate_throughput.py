"""How much of a bare vLLM's speed the annotate stage keeps, over the same prompts in one run.

    python benchmarks/annotate_throughput.py --corpus ../shared/imdb/corpus.parquet \\
        --model llambert/demo/mini-llama

Both get the same engine arguments and sampling parameters, in turns, every other one in the
opposite order, each in processes of its own.
Both are timed from an engine that is ready to the last answer, over all prompts. Ours is held
until its engine is ready, so that making the prompts and writing the answers are in its time, and
so are the engine's first requests; the bare `LLM.chat` has had a call to warm up, with prompts of
its own, for what the engine has seen is in its prefix cache. `--layers` and `--width` put a random
Llama of that size in the place of the model, with its tokenizer: a toy spends its time on
everything but the model.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
from provenance import provenance

from llambert import schema
from llambert.annotate import annotate
from llambert.cluster import connection, resources
from llambert.engines.config import AnnotateConfig, device
from llambert.engines.vllm import engine_settings
from llambert.progress import Progress
from llambert.storage import Folder
from llambert.task import TaskConfig, messages

_TASK = TaskConfig(
    labels={"negative": [], "positive": []},
    system="Please answer with 'positive' or 'negative' only!",
    prompt="Is the movie review below positive or negative?\n\n{text}",
)
_WARM_UP = 16  # prompts
_STEP_TOKENS = 4096  # what ours takes by default, where `LLM` would take another number
_CHARACTERS = 1200  # of each text, so that every prompt fits any window: nothing is cut

_BARE = """
import json, os, sys, time
what = json.load(sys.stdin)
os.environ.update(what["environment"])
from vllm import LLM, SamplingParams

llm = LLM(model=what["model"], disable_log_stats=True, **what["engine"])
params = SamplingParams(**what["sampling"])
llm.chat(what["warm_up"], params, use_tqdm=False)
started = time.perf_counter()
answers = llm.chat(what["chats"], params, use_tqdm=False)
seconds = time.perf_counter() - started
tokens = sum(len(a.prompt_token_ids) + len(a.outputs[0].token_ids) for a in answers)
print("tokens/s", tokens / seconds)
"""


def main() -> None:
    a = _arguments()
    read = pyarrow.dataset.dataset(a.corpus).head(a.records + _WARM_UP, columns=[a.text])
    texts = [text[:_CHARACTERS] for text in read[a.text].to_pylist()]
    runs: dict[str, list[float]] = {"ours": [], "bare": []}
    with tempfile.TemporaryDirectory() as place:
        model = random_llama(a.model, a.width, a.layers, place) if a.layers else a.model
        config = AnnotateConfig(
            engine="vllm",
            model=model,
            max_model_len=a.window,
            batch_size=a.batch_size,
            engine_kwargs={"max_num_batched_tokens": _STEP_TOKENS},
        )
        measure = {
            "ours": lambda turn: ours(config, texts[_WARM_UP:], f"{place}/{turn}"),
            "bare": lambda turn: bare(config, texts[_WARM_UP:], texts[:_WARM_UP]),
        }
        for turn in range(a.turns):
            for name in list(runs)[:: -1 if turn % 2 else 1]:
                runs[name].append(measure[name](turn))
                print(f"turn {turn + 1}: {name:<6} {runs[name][-1]:10.1f} tokens/s", flush=True)
    ratio = statistics.median(x / y for x, y in zip(runs["ours"], runs["bare"], strict=True))
    print(f"ours / bare: {ratio:.3f} (median of {a.turns} turns)")
    if a.json:
        result = {"tokens_per_s": runs, "ratio_to_bare": ratio} | provenance(a)
        Path(a.json).write_text(json.dumps(result, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", required=True, help="Parquet file or folder")
    parser.add_argument("--text", default="text", help="its column of texts")
    parser.add_argument("--model", required=True)
    parser.add_argument("--records", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--window", type=int, default=512, help="tokens")
    parser.add_argument("--layers", type=int, help="of a random Llama")
    parser.add_argument("--width", type=int, default=512, help="of a random Llama")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", help="write all figures to this file")
    return parser.parse_args()


def random_llama(model: str, width: int, layers: int, place: str) -> str:
    """A folder with a random Llama of this size and the tokenizer of `model`."""
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    AutoTokenizer.from_pretrained(model).save_pretrained(f"{place}/llama")
    config = AutoConfig.from_pretrained(model)
    config.hidden_size, config.num_hidden_layers = width, layers
    config.intermediate_size, config.num_attention_heads = 4 * width, width // 64
    config.num_key_value_heads, config.head_dim = width // 64, 64
    config.layer_types = None
    LlamaForCausalLM(config).save_pretrained(f"{place}/llama")
    return f"{place}/llama"


def ours(config: AnnotateConfig, texts: list[str], place: str) -> float:
    """Tokens per second of the annotate stage, prompt and answer together."""
    from clock import all_ready

    records = pa.table(
        {"id": [str(i) for i in range(len(texts))], "text": texts}, schema=schema.SAMPLE
    )
    folder = Folder(f"{place}/{uuid.uuid4().hex}")
    with connection(), Progress("annotate", quiet=True) as progress, all_ready() as seconds:
        details = annotate(config, _TASK, records, folder, progress).details
    if details["truncated"] or details["failed"]:
        raise SystemExit(f"not the same work: {details}")
    return (details["prompt_tokens"] + details["output_tokens"]) / seconds()


def bare(config: AnnotateConfig, texts: list[str], warm_up: list[str]) -> float:
    """The same of `LLM.chat` in a process of its own, after a call with the texts of `warm_up`."""
    with connection():
        where = device(config, resources())
    engine, sampling, environment = engine_settings(config, _TASK, where, config.max_model_len)
    what: dict[str, Any] = {
        "model": config.model,
        "engine": engine,
        "sampling": sampling,
        "environment": environment,
        "warm_up": [messages(_TASK, text) for text in warm_up],
        "chats": [messages(_TASK, text) for text in texts],
    }
    done = subprocess.run(
        [sys.executable, "-c", _BARE],
        input=json.dumps(what),
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    # among the lines that vLLM writes there too
    (said,) = [line for line in done.stdout.splitlines() if line.startswith("tokens/s ")]
    return float(said.split()[1])


if __name__ == "__main__":
    main()
