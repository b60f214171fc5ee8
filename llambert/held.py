"""What a finished step held: devices, their time, and what that costs. Pure.

One measure for every stage, so that an LLM and an encoder compare. A stage holds its GPUs from its
start to its end, whether they compute or wait, and as many as it may have had at most. Where there
is no GPU, stages take turns at all the cores of the cluster, whatever their number of workers: its
machines together count as one device.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from llambert.section import Section
from llambert.storage import Manifest

WORKING = {"annotate", "train", "evaluate", "label", "cascade"}  # they keep a model busy
_LLM = {"annotate", "cascade"}  # those of them whose model is the LLM
_MILLION = 1e6
_HOUR_S = 3600


class PricesConfig(Section):
    """What devices and tokens cost. A device is a GPU; without GPUs the whole cluster is one."""

    currency: str = Field("USD", description="Name of the money; any, it is only shown.")
    llm_device_hour: float | None = Field(
        None, ge=0, description="Price of an hour of one of the LLM's devices (vllm)."
    )
    encoder_device_hour: float | None = Field(
        None, ge=0, description="Price of an hour of one of the encoder's devices."
    )
    million_prompt_tokens: float | None = Field(
        None, ge=0, description="Price of a million prompt tokens of an endpoint (openai)."
    )
    million_output_tokens: float | None = Field(
        None, ge=0, description="Price of a million output tokens of an endpoint (openai)."
    )

    @property
    def of_a_token(self) -> tuple[float, float] | None:
        """The price of a prompt token and of an output token; None where one is not known."""
        if self.million_prompt_tokens is None or self.million_output_tokens is None:
            return None
        return self.million_prompt_tokens / _MILLION, self.million_output_tokens / _MILLION


@dataclass(frozen=True)
class Held:
    """What a step held in its last round that did anything, and how fast it was.

    Attributes:
        device: 'gpu' or 'cpu'; None where the work was done elsewhere (an endpoint's).
        devices: held at once; None where that is not known, or where there were none.
        seconds: of the round, from its start to its end.
        records: of the step, those that earlier rounds did too.
        done: by the round.
        per_s: records a second of the round, its start aside; None where too few were done.
        prompt_tokens, output_tokens: of an LLM, of all records; 0 where they were not counted.
        tokens: that went through the model for all records, epochs and answers included.
    """

    llm: bool
    device: str | None
    devices: int | None
    seconds: float
    records: int
    done: int
    per_s: float | None
    prompt_tokens: int
    output_tokens: int
    tokens: int

    def device_seconds(self, records: float) -> float | None:
        """Of so many records done in one round: its start, then all at the measured rate."""
        if not records:
            return 0.0
        if self.devices is None:
            return None
        if records == self.done:
            return self.devices * self.seconds
        if not self.per_s:
            return None
        start = max(self.seconds - self.done / self.per_s, 0.0) if self.done else 0.0
        return self.devices * (start + records / self.per_s)

    @property
    def device_seconds_each(self) -> float | None:
        """Of a further record."""
        return self.devices / self.per_s if self.devices and self.per_s else None

    def money(
        self, prices: PricesConfig, records: float, device_seconds: float | None
    ) -> float | None:
        """The price of so much time, or of so many records' tokens where an endpoint answers."""
        if not records:
            return 0.0
        if self.devices is not None:
            hour = prices.llm_device_hour if self.llm else prices.encoder_device_hour
            if hour is None or device_seconds is None:
                return None
            return hour * device_seconds / _HOUR_S
        if self.device or not (self.prompt_tokens and prices.of_a_token):
            return None  # an endpoint may not say how many tokens there were
        prompt, output = prices.of_a_token
        paid = prompt * self.prompt_tokens + output * self.output_tokens
        return paid * records / self.records


def held(manifest: Manifest) -> Held:
    """What the step of `manifest` held."""
    found, stage, counts = figures(manifest), manifest.stage, manifest.counts
    records = found.get("answers", counts["in" if stage == "annotate" else "out"])
    done = found.get("asked", found.get("labelled_now", records))
    prompt, output = (found.get(name) or 0 for name in ("prompt_tokens", "output_tokens"))
    tokens = found.get("tokens") or prompt + output
    if stage == "label" and done:  # it counts those of the round
        tokens = round(tokens * records / done)
    # a training that went on after a crash tells its seconds from the beginning
    whole = max(manifest.seconds, found.get("training_seconds") or 0.0)
    return Held(
        llm=stage in _LLM,
        device=found.get("device"),
        devices=devices(stage, found),
        seconds=found.get("seconds") or whole,
        records=records,
        done=done,
        per_s=found.get("records_per_s"),
        prompt_tokens=prompt,
        output_tokens=output,
        tokens=tokens,
    )


def figures(manifest: Manifest) -> dict[str, Any]:
    """The figures of a step's work, in the last round that did any; a cascade's are apart."""
    found = manifest.details.get("cost", manifest.details)
    return {**found, **found.get("last_round", {})}


def devices(stage: str, found: Mapping[str, Any]) -> int | None:
    """How many devices a stage with these details held; None where they do not tell."""
    if found.get("device") == "cpu":
        return 1
    if found.get("device") != "gpu":
        return None
    if stage in _LLM:  # its device-seconds are those of its most replicas
        spent, seconds = found.get("device_seconds"), found.get("seconds")
        return round(spent / seconds) if spent and seconds else None
    return found.get("workers")
