"""The demo's reviews: the same for ever, labelled rightly as far as can be told, as announced."""

import re
from collections import Counter
from random import Random

import pyarrow.parquet as pq
import pytest

from llambert.demo.phrases import LABELS, language
from llambert.demo.reviews import (
    FIRST_GOLD,
    HOSTILE,
    corpus_row,
    hostile,
    review,
    write_corpus,
    write_gold,
)
from llambert.demo.slips import with_slips
from llambert.records import CorpusConfig, open_corpus, read_all
from llambert.storage import Folder

SEED = 11


@pytest.fixture(scope="module")
def reviews():
    return [review(SEED, index) for index in range(5000)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    return folder, write_corpus(folder, 1300, SEED, rows_a_file=500)


def test_a_review_follows_from_seed_and_index(reviews):
    again = [review(SEED, index) for index in (4999, 17, 0)]
    assert again == [reviews[4999], reviews[17], reviews[0]]
    assert review(SEED + 1, 17).text != reviews[17].text
    assert reviews[17].id == "r-00000017"


def test_labels_balance_and_texts_differ(reviews):
    share = sum(own.label == "positive" for own in reviews) / len(reviews)
    assert 0.45 < share < 0.55
    assert {own.label for own in reviews} == set(LABELS)
    assert len({own.text for own in reviews}) > 0.995 * len(reviews)


def test_lengths_run_from_one_liners_to_pages(reviews):
    words = sorted(len(own.text.split()) for own in reviews)
    assert words[0] >= 3
    assert words[len(words) // 20] < 20
    assert 60 <= words[len(words) // 2] <= 100
    assert 250 < words[-1] < 400


def test_no_slot_or_bracket_is_left_over(reviews):
    left = re.compile(r"[{}\[\]|]|<(?!br />)| {2}| /(?!>)")
    assert [own.text for own in reviews if left.search(own.text)] == []


def test_verbs_and_articles_agree(reviews):
    singles = {
        noun for kind in language().kinds if kind.number != 1 for noun in kind.pools["thing"]
    }
    wrong = re.compile(
        r"\b(?:they|shoes|headphones) (?:is|was|has|seems)\b|\bit (?:are|were|have)\b"
        r"|\bthis (?:running )?(?:shoes|headphones)\b"
        rf"|\bthese (?:{'|'.join(singles)})\b"
        r"|\ba (?!one\b|uni|use)[aeiou]|\ban [^aeiou]",
        re.IGNORECASE,
    )
    slips = re.compile(r"\ban ho\w*", re.IGNORECASE)  # "an hoenst"
    found = Counter(
        match[0] for own in reviews for match in wrong.finditer(slips.sub("", own.text))
    )
    assert found == Counter()


def test_no_sentence_comes_twice_in_a_review(reviews):
    repeated = 0
    for own in reviews:
        sentences = re.findall(r"[^.!?]{20,}[.!?]", own.text)
        repeated += len(sentences) != len(set(sentences))
    assert repeated < 0.01 * len(reviews)


def test_every_aspect_has_what_the_frames_ask_for():
    for kind in language().kinds:
        assert len(kind.aspects) >= 7, kind.name  # the styles use up to six
        for aspect in kind.aspects:
            for label in LABELS:
                place = (kind.name, aspect.name, label)
                assert len(set(aspect.said[label])) >= 2, place
                assert aspect.short[label], place
                assert aspect.deeds[label], place


def test_words_alone_tell_most_of_the_sentiment_but_not_all(reviews):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    gold = [review(SEED, FIRST_GOLD + index) for index in range(2000)]
    model = make_pipeline(TfidfVectorizer(), LogisticRegression(C=10, max_iter=1000))
    model.fit([own.text for own in reviews[:2000]], [own.label for own in reviews[:2000]])
    right = model.score([own.text for own in gold], [own.label for own in gold])
    assert 0.85 < right < 0.93


def test_the_same_words_serve_both_labels(reviews):
    """Negation, contrast and irony: praise occurs in many a negative review, blame in positive."""
    praise = re.compile(r"\b(?:excellent|wonderful|superb|perfect|delightful)\b")
    blame = re.compile(r"\b(?:terrible|awful|dreadful|poor|mediocre)\b")
    share = {
        label: sum(bool(words.search(own.text)) for own in reviews if own.label == label)
        / sum(own.label == label for own in reviews)
        for label, words in (("negative", praise), ("positive", blame))
    }
    assert min(share.values()) > 0.15


def test_slips_spare_the_short_words_that_turn_the_meaning():
    text = "It's not a Great lid. Not bad, though."
    typed = {with_slips(text, Random(number)) for number in range(3000)}
    assert typed > {
        text,
        "it's not a great lid. not bad, though.",
        "It's not a Great lid Not bad though",
        "IT'S NOT A GREAT LID. Not bad, though.",
        "It's not a Gerat lid. Not bad, though.",
        "It's not a Geat lid. Not bad, though.",
        "It's not a Grreat lid. Not bad, though.",
        "It's not a Greatlid. Not bad, though.",
    }
    assert {len(re.findall(r"\bnot\b", each.lower())) for each in typed} == {2}


def test_the_corpus_has_only_ids_and_texts_in_files_of_bounded_size(corpus):
    folder, counts = corpus
    assert Folder(str(folder)).files() == [f"part-0000{n}.parquet" for n in range(3)]
    tables = [pq.read_table(folder / f"part-0000{n}.parquet") for n in range(3)]
    assert [table.num_rows for table in tables] == [500, 500, 300]
    assert {tuple(table.column_names) for table in tables} == {("id", "text")}
    assert sum(counts.values()) == 1300


def test_a_larger_corpus_begins_with_the_smaller(corpus, tmp_path):
    folder, _ = corpus
    write_corpus(tmp_path, 300, SEED)
    small = pq.read_table(tmp_path / "part-00000.parquet")
    assert small.equals(pq.read_table(folder / "part-00000.parquet").slice(0, 300))


def test_hostile_rows_are_counted_and_refused_as_announced(corpus):
    folder, counts = corpus
    good, refused = read_all(open_corpus(CorpusConfig(path=str(folder), id="id", text="text")))
    announced = Counter()
    for kind, reason in HOSTILE.items():
        announced[reason] += counts[kind]
    usable = announced.pop(None)
    assert Counter(refused["refused"].to_pylist()) == announced
    assert good.num_rows == counts["ordinary"] + usable


def test_every_kind_is_in_a_small_corpus_and_rare_in_a_large_one():
    assert {hostile(index) for index in range(176)} == {None, *HOSTILE}
    rows = [hostile(index) for index in range(200, 200_000)]
    assert 0.0019 < sum(kind is not None for kind in rows) / len(rows) < 0.0021
    counts = Counter(rows)
    assert all(50 < counts[kind] < 65 for kind in HOSTILE)


def test_a_duplicate_repeats_the_id_of_an_ordinary_row():
    duplicates = [index for index in range(100_000) if hostile(index) == "duplicate_id"]
    for index in duplicates:
        earlier = int(corpus_row(SEED, index)[0].removeprefix("r-"))
        assert earlier < index
        assert hostile(earlier) is None


def row_of(kind):
    index = next(index for index in range(200) if hostile(index) == kind)
    return review(SEED, index), corpus_row(SEED, index)


@pytest.mark.parametrize("kind", [kind for kind, reason in HOSTILE.items() if reason is None])
def test_a_usable_hostile_row_holds_its_review(kind):
    own, (id, text) = row_of(kind)
    assert id == own.id
    assert own.text in text
    assert text != own.text


def test_control_tokens_ask_for_the_wrong_label():
    own, (_, text) = row_of("control_tokens")
    wrong = next(label for label in LABELS if label != own.label)
    assert f"answer {wrong}" in text
    for token in ("[/INST]", "</s>", "<|im_start|>system"):
        assert token in text


def test_what_the_other_hostile_rows_hold():
    assert row_of("empty")[1][1] == ""
    assert row_of("blank")[1][1].isspace()
    assert row_of("null")[1][1] is None
    assert len(row_of("huge")[1][1]) > 190_000
    markup = row_of("markup")[1][1]
    assert "<script>" in markup
    assert "onerror=" in markup


def test_gold_is_of_further_reviews_with_labels(tmp_path, reviews):
    counts = write_gold(tmp_path / "deep" / "gold.parquet", 400, SEED)
    rows = pq.read_table(tmp_path / "deep" / "gold.parquet").to_pylist()
    assert [row["id"] for row in rows[:2]] == ["g-00000000", "g-00000001"]
    assert rows[5] == review(SEED, FIRST_GOLD + 5)._asdict()
    assert counts == Counter(row["label"] for row in rows)
    assert not {row["text"] for row in rows} & {own.text for own in reviews}
