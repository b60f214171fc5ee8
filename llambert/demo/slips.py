"""How people type: slips of the finger, no capitals, no full stops, shouting."""

import re
from random import Random

_SLIP_SHARE = 0.25  # of reviews; the shares below are of reviews too
_LOWER_SHARE = 0.05
_BARE_SHARE = 0.02
_SHOUT_SHARE = 0.03
_LEAST_LETTERS = 5  # of a word that may have a slip: "not" stays "not"
_SENTENCE = re.compile(r"[^.!?\n<>]{12,}[.!?]")


def with_slips(text: str, rng: Random) -> str:
    """The text as somebody in a hurry might have typed it; most texts stay as they are."""
    if rng.random() < _SLIP_SHARE:
        text = _mistyped(text, rng)
    mood = rng.random()
    if mood < _LOWER_SHARE:
        return text.lower()
    if mood < _LOWER_SHARE + _BARE_SHARE:
        return re.sub(r"[.,;:!?\"]", "", text)
    if mood < _LOWER_SHARE + _BARE_SHARE + _SHOUT_SHARE:
        sentences = _SENTENCE.findall(text)
        if sentences:
            loud = sentences[int(rng.random() * len(sentences))]
            return text.replace(loud, loud.upper(), 1)
    return text


def _mistyped(text: str, rng: Random) -> str:
    words = text.split(" ")
    for _ in range(1 + int(rng.random() * (1 + len(words) / 25))):
        place = int(rng.random() * len(words))
        word = words[place]
        if not word.isalpha() or len(word) < _LEAST_LETTERS:
            continue
        at = 1 + int(rng.random() * (len(word) - 2))
        slip = int(rng.random() * 4)
        if slip == 0:  # two letters change places
            word = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        elif slip == 1:  # one is left out
            word = word[:at] + word[at + 1 :]
        elif slip == 2:  # one comes twice
            word = word[:at] + word[at] + word[at:]
        elif place + 1 < len(words):  # no space
            word += words.pop(place + 1)
        words[place] = word
    return " ".join(words)
