"""One review, put together from the phrases: which opinions, in which words, in which order."""

import re
from collections.abc import Sequence
from functools import cache
from random import Random
from typing import NamedTuple, TypeVar

from llambert.demo.phrases import LABELS, Aspect, agreement, language
from llambert.demo.slips import with_slips

# Of sentences: (share of the reviews up to here, least, most).
_LENGTHS = ((0.06, 1, 1), (0.28, 3, 5), (0.70, 6, 11), (0.93, 11, 18), (1.0, 19, 30))
# How an opinion is put, each as often as it is here: frames of that name, and what happened.
_MEANS = ["state"] * 8 + ["deed"] * 3 + ["tale"] * 3 + ["feeling"] * 10 + ["pair"] * 2
_MEANS += ["negated", "reversed", "compared", "ironic"]
_DENIALS = ["negated"] * 5 + ["reversed"] * 3 + ["compared"]
_TURNS = ["reversed", "reversed", "compared", "state", "deed", "tale", "feeling"]
_OPPOSITE = dict(zip(LABELS, reversed(LABELS), strict=True))

_T = TypeVar("_T")

_STEADY = {"town", "brand", "maker", "name"}  # have one value throughout a review
_OPINION_SLOTS = {"a", "fit", "too", "unfit", "word", "does"}
_GENERAL_SHARE = 0.5  # of judgements: "good" rather than "snug"

_SLOT = re.compile(r"([{\[<])(\w+)[}\]>]")
_START = re.compile(r"(?:^|[.!?] |\n|>)[a-z]")
_VERBS = ("is", "are", "was", "were", "do", "does", "did", "would", "could", "has", "had", "have")
_CONTRACTED = {f"{verb} not": f"{verb}n't" for verb in _VERBS}
_CONTRACTED |= {"cannot": "can't", "will not": "won't", "I am": "I'm"}
_CONTRACTIBLE = re.compile(r"\b(?:" + "|".join(sorted(_CONTRACTED, key=len)[::-1]) + r")\b")


def write_review(seed: int, index: int) -> tuple[str, str]:
    """Text and label of the review with this index."""
    rng = Random(f"{seed}:{index}")
    label = LABELS[rng.random() < 0.5]
    text = _Writer(rng, label).text()
    return with_slips(text, rng), label


class _Side(NamedTuple):
    """What an opinion is of, and which way it goes."""

    aspect: Aspect
    label: str


@cache  # as many as there are frames
def _parts(frame: str) -> list[tuple[str, str]]:
    """The frame cut at its slots: (opening bracket, or nothing for plain text; what is in it)."""
    pieces = _SLOT.split(frame)
    parts = [("", pieces[0])]
    for mark, slot, text in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        parts += [(mark, slot), ("", text)]
    return parts


class _Writer:
    """Writes one review; no frame is used twice in it, if there are others."""

    def __init__(self, rng: Random, label: str) -> None:
        self.language = language()
        self.chance = rng.random
        self.label = label
        self.kind = self.pick(self.language.kinds)
        self.fixed = dict(self.kind.fixed)
        self.used: set[str] = set()
        self.aspects = list(self.kind.aspects)
        rng.shuffle(self.aspects)

    # -- words ---------------------------------------------------------------------------------

    def pick(self, options: Sequence[_T]) -> _T:
        return options[int(self.chance() * len(options))]

    def fresh(self, options: Sequence[str]) -> str:
        for _ in range(8):
            option = self.pick(options)
            if option not in self.used:
                break
        self.used.add(option)
        return option

    def fill(self, frame: str, side: "_Side | None" = None, **slots: str) -> str:
        """The frame with its slots filled; within one frame a slot has one value.

        Args:
            side: the aspect that the frame is about.
            slots: values that the caller knows.
        """
        parts = _parts(frame)
        if len(parts) == 1:
            return frame
        agree, thing = self.language.agree, self.kind.number
        aspect = agreement(side.aspect.plural, thing > 1) if side else thing
        text = []
        for mark, part in parts:
            if mark == "{":
                if part not in slots:
                    slots[part] = self.value(part, side, slots)
                text.append(slots[part])
            else:
                text.append(part if not mark else agree[part][aspect if mark == "[" else thing])
        return "".join(text)

    def value(self, slot: str, side: "_Side | None", slots: dict[str, str]) -> str:
        """A value for a slot; of `town2`, one that differs from `town`."""
        if slot in self.fixed:
            return self.fixed[slot]
        if side and slot in _OPINION_SLOTS:
            return self.opinion_slot(slot, side, slots)
        base = slot.removesuffix("2")
        taken = None if slot == base else slots.get(base) or self.fixed.get(base)
        value = self.drawn(slot, base)
        while value == taken:
            value = self.drawn(slot, base)
        if slot in _STEADY:
            self.fixed[slot] = value
        return value

    def drawn(self, slot: str, base: str) -> str:
        pool = self.kind.pools.get(slot) or self.kind.pools.get(base)
        if pool:
            return self.fill(self.pick(pool))
        return "".join([self.pick(place) for place in self.language.invented[base]])

    def opinion_slot(self, slot: str, side: "_Side", slots: dict[str, str]) -> str:
        aspect, label, other = side.aspect, side.label, _OPPOSITE[side.label]
        general = self.language.general
        if slot == "a":
            return aspect.name
        if slot == "does":
            return self.fill(self.pick(aspect.deeds[label]))
        if slot == "word":
            return self.pick(aspect.words[label] or general[label])
        plain = self.chance() < _GENERAL_SHARE
        if slot == "unfit":
            return self.pick(general[other] if plain else aspect.short[other])
        options = general[label] if plain and slot == "fit" else aspect.said[label]
        value = self.pick(options)
        while slot == "too" and value == slots.get("fit"):
            value = self.pick(options)
        return value

    # -- sentences -----------------------------------------------------------------------------

    def say(self, means: str, label: str, aspect: Aspect, **slots: str) -> str:
        """Of this aspect, by a frame of these means, what speaks for `label`."""
        frame = self.fresh(self.language.frames[means, label])
        return self.fill(frame, _Side(aspect, label), **slots)

    def clause(self, label: str) -> str:
        return self.say("clause", label, self.aspects.pop())

    def opinion(self, label: str, means: Sequence[str] = _MEANS) -> str:
        how = self.pick(means)
        if how == "tale" or not self.aspects:
            untold = [tale for tale in self.kind.tales[label] if tale not in self.used]
            if untold:
                return self.fill(self.fresh(untold))
            how = "feeling"
        if how == "feeling":
            return self.frame("feeling", label)
        aspect = self.aspects.pop()
        if how == "pair" and self.aspects:
            return self.say("pair", label, aspect, other=self.clause(label))
        return self.say("state" if how == "pair" else how, label, aspect)

    def contrast(self, means: str = "contrast") -> str:
        """Two aspects, of which the second speaks for the review's label and weighs more."""
        minor = self.clause(_OPPOSITE[self.label])
        if means == "priority":
            return self.say("priority", self.label, self.aspects.pop(), minor=minor)
        frame = self.fresh(self.language.frames["contrast", self.label])
        return self.fill(frame, minor=minor, major=self.clause(self.label))

    def against(self) -> str:
        """What can be said on the other side."""
        if self.chance() < 0.5:
            return self.opinion(_OPPOSITE[self.label], ("state", "deed"))
        frame = self.fresh(self.language.frames["concede", self.label])
        return self.fill(frame, minor=self.clause(_OPPOSITE[self.label]))

    def frame(self, name: str, label: str) -> str:
        """A frame that is about no aspect."""
        general = self.language.general[label]
        great = self.pick(general)
        great2 = self.pick([word for word in general if word != great])
        return self.fill(self.fresh(self.language.frames[name, label]), great=great, great2=great2)

    # -- the review ----------------------------------------------------------------------------

    def text(self) -> str:
        chance = self.chance
        place = chance()
        low, high = next((low, high) for share, low, high in _LENGTHS if place < share)
        count = low + int(chance() * (high + 1 - low))
        sentences = [self.one_liner()] if count == 1 else self.sentences(count)
        text = self.joined(sentences, breaks=0.5 if count > 9 else 0.04)
        if chance() < 0.5:  # one writes "isn't", another "is not"
            text = _CONTRACTIBLE.sub(lambda match: _CONTRACTED[match[0]], text)
        text = _START.sub(lambda match: match[0].upper(), text)
        return f"{text} {self.pick(self.language.emoji[self.label])}" if chance() < 0.04 else text

    def one_liner(self) -> str:
        label, chance = self.label, self.chance()
        if chance < 0.65:
            aspect, second = self.aspects.pop(), self.aspects.pop()
            word = self.pick(second.words[label] or self.language.general[label])
            return self.say(
                "short",
                label,
                aspect,
                tiny=self.frame("tiny", label),
                word2=word,
                a2=second.name,
                clause2=self.clause(label),
            )
        if chance < 0.8:
            return self.contrast()
        lines = self.kind.irony if chance < 0.87 else self.kind.tales
        opening = self.fill(self.pick(self.kind.openings))
        return f"{opening} {self.fill(self.pick(lines[label]))}"

    def sentences(self, count: int) -> list[str]:
        said = min(max(1, round(0.75 * (count - 1))), len(self.aspects) + 3)
        opinions, closing = self.pick(_STYLES)(self, said)
        judged = self.chance() < closing
        sentences = self.among(opinions, count - len(opinions) - judged)
        if judged and self.chance() < 0.1:
            sentences.insert(0, self.frame("tiny", self.label))
        elif judged:
            sentences.append(self.fill(self.fresh(self.kind.verdicts[self.label])))
        return sentences

    def among(self, opinions: list[str], count: int) -> list[str]:
        """The opinions, in their order, among `count` sentences that judge nothing."""
        sentences = list(opinions)
        opening = count > 0 and self.chance() < 0.85
        for _ in range(count - opening):
            line = self.fill(self.fresh(self.kind.neutral))
            sentences.insert(int(self.chance() * (len(sentences) + 1)), line)
        if opening:
            sentences.insert(0, self.fill(self.fresh(self.kind.openings)))
        return sentences

    def joined(self, sentences: list[str], breaks: float) -> str:
        """The sentences as one text, with paragraphs if that is how this writer writes."""
        if self.chance() >= breaks:
            return " ".join(sentences)
        mark = "<br /><br />" if self.chance() < 0.5 else "\n\n"
        parts = [sentences[0]]
        for sentence in sentences[1:]:
            parts.append((mark if self.chance() < 0.25 else " ") + sentence)
        return "".join(parts)

    # Each style takes the number of opinions and gives them with the probability of a verdict.

    def plain(self, count: int) -> tuple[list[str], float]:
        """All of one mind."""
        opinions = [self.opinion(self.label) for _ in range(count)]
        if count > 2 and self.chance() < 0.2 and self.aspects:
            opinions[-2] = self.against()
        return opinions, 0.85

    def mixed(self, count: int) -> tuple[list[str], float]:
        """Both sides; a verdict, or what matters most, decides."""
        opinions = []
        decided = self.chance() < 0.35  # by what matters most, so that no verdict is needed
        for _ in range(count - 1):
            if len(self.aspects) < 4:
                break
            turn = self.chance()
            if turn < 0.3:
                opinions.append(self.contrast())
            else:
                against = turn < (0.45 if decided else 0.52)
                opinions.append(self.against() if against else self.opinion(self.label))
        opinions.append(self.contrast("priority" if decided else "contrast"))
        if self.chance() < 0.5:
            opinions.append(self.frame("feeling", self.label))
        return opinions, 0.4 if decided else 1.0

    def denied(self, count: int) -> tuple[list[str], float]:
        """By what it is not, and by what others wrongly say."""
        return [self.opinion(self.label, _DENIALS) for _ in range(count)], 0.3

    def turned(self, count: int) -> tuple[list[str], float]:
        """Great hopes dashed, or the worst not come to pass."""
        hopes = self.frame("hype", self.label)
        if self.chance() < 0.7:
            hopes += " " + self.frame("turn", self.label)
        return [hopes, *(self.opinion(self.label, _TURNS) for _ in range(count))], 0.4

    def balanced(self, count: int) -> tuple[list[str], float]:
        """Both sides and no verdict, but far more to be said on one of them."""
        against = self.against()
        opinions = [self.opinion(self.label) for _ in range(max(count - 1, 3))]
        opinions.insert(int(self.chance() * 2), against)
        return opinions, 0.0

    def ironic(self, count: int) -> tuple[list[str], float]:
        """Blame dressed as praise, praise dressed as blame."""
        opinions = []
        for _ in range(min(count, 3)):
            if self.chance() < 0.6:
                opinions.append(self.fill(self.fresh(self.kind.irony[self.label])))
            else:
                opinions.append(self.say("ironic", self.label, self.aspects.pop()))
        if count > 2 and self.chance() < 0.5:
            opinions.append(self.opinion(self.label))
        return opinions, 0.0


_STYLES = (  # each as often as it is here
    [_Writer.plain] * 65
    + [_Writer.mixed] * 18
    + [_Writer.denied] * 4
    + [_Writer.turned] * 4
    + [_Writer.balanced] * 4
    + [_Writer.ironic] * 5
)
