import pytest

from mla_jax.world import lexicon, stories
from mla_jax.world.events import EVENTS
from mla_jax.world.grammar import LITERAL, closers, compile_skeleton, skeletons
from mla_jax.world.parse import parse
from mla_jax.world.sentences import split, tokenize

ALL = [skeleton for options in skeletons().values() for skeleton in options]
FACT_WORDS = {*lexicon.COLORS, *lexicon.ANIMALS, *lexicon.PLACE_NOUNS, *lexicon.THINGS, *lexicon.NAMES}


def test_there_are_enough_skeletons_and_no_two_alike():
    assert len(ALL) >= 300
    assert len({skeleton.source for skeleton in ALL}) == len(ALL)


def test_events_and_phrases_belong_together():
    assert set(skeletons()) == set(EVENTS)
    for skeleton in ALL:
        roles = {part.role for part in skeleton.parts if part.role}
        assert roles <= set(EVENTS[skeleton.event].roles), skeleton


def test_no_fact_word_is_written_out():
    for skeleton in ALL:
        words = {word for part in skeleton.parts if part.type == LITERAL for word in tokenize(part.text)}
        assert not words & FACT_WORDS, skeleton.key()


def test_free_words_carry_no_facts():
    for name, words in lexicon.FREE.items():
        assert not set(words) & FACT_WORDS, name
    assert len(closers()) == len(lexicon.CLOSERS)


def test_names_tell_one_gender():
    groups = (lexicon.GIRLS, lexicon.BOYS, lexicon.NEUTRAL)
    assert sum(map(len, groups)) == len({name for group in groups for name in group})


def test_unknown_slots_and_nested_choices_are_bugs():
    with pytest.raises(ValueError, match="neither a role nor a free class"):
        compile_skeleton("see", "The {colour} sky.")
    with pytest.raises(ValueError, match="choice cannot hold a slot"):
        compile_skeleton("see", "The [big|{worn}] sky.")


def test_every_generated_sentence_is_parsed_as_its_event():
    for row in stories(200, 21):
        sentences = split(tokenize(row["text"]))
        events = row["facts"]["events"]
        assert len(sentences) == len(events)
        for sentence, (kind, _, _) in zip(sentences, events, strict=True):
            assert kind in {reading.skeleton.event for reading in parse(sentence)}, sentence


@pytest.mark.parametrize(
    "text",
    [
        "lily had a big red ball.",  # small first letter
        "Lily had a orange ball.",  # wrong article, no look
        "Lily had an big red ball.",
        "Lily had a big red ball",  # no full stop
        "Lily big a had red ball.",
        "Lily had a big red.",
        "",
    ],
)
def test_what_the_grammar_does_not_have_is_not_parsed(text):
    assert not parse(tokenize(text))


def test_a_reading_binds_roles():
    (reading,) = parse(tokenize("A little later, Lily had a big red ball, while the larks sang.")) or (None,) * 1
    assert reading is None  # openers of the plot do not fit the opening
    (reading,) = parse(tokenize("Of course, Lily had a big red ball."))
    assert reading.skeleton.event == "has"
    assert set(reading.bindings) == {
        ("A", "subject", "Lily"),
        ("O", "look", "big"),
        ("O", "color", "red"),
        ("O", "noun", "ball"),
    }


def test_sentences_end_outside_quotes_only():
    text = '"Help! I am lost!" cried Tom. He ran. "Stop."'
    assert [" ".join(sentence) for sentence in split(tokenize(text))] == [
        '" Help ! I am lost ! " cried Tom .',
        "He ran .",
        '" Stop . "',
    ]
    assert [len(sentence) for sentence in split(tokenize('" ' + "word " * 130))] == [60, 60, 11]
