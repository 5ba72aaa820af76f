"""The teller of stories: its choices, its pages, its last look, and what it tells."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import examples

from llama2np import Llama, box
from tools.samples import faults
from tools.stories import teller
from tools.stories.characters import is_name, meet
from tools.stories.chooser import Chooser
from tools.stories.grammar import pages, parse_form, parse_page, split
from tools.stories.polish import polish
from tools.stories.teller import tell
from tools.stories.words import names, said_again, vocabulary, words

DOCS = Path(__file__).parents[1] / "docs"
PLOTS = [plot.name for plot in pages()[1]]


def test_choices_are_counted():
    chooser = Chooser("a")
    chooser.pick("abcd")
    assert chooser.nats == pytest.approx(math.log(4))
    chooser.pick("a")
    assert chooser.nats == pytest.approx(math.log(4))
    chooser.some("abc", 2)
    assert chooser.nats == pytest.approx(math.log(4 * 3 * 2))
    happens = chooser.chance(0.25)
    assert chooser.nats == pytest.approx(math.log(4 * 3 * 2 * (4 if happens else 4 / 3)))


def test_choices_are_fair_and_follow_from_the_seed():
    chooser = Chooser("b")
    picked = [chooser.pick("abc") for _ in range(3000)]
    assert all(900 < picked.count(letter) < 1100 for letter in "abc")
    assert 700 < sum(chooser.chance(0.25) for _ in range(3000)) < 800
    again = Chooser("b")
    assert picked == [again.pick("abc") for _ in range(3000)]
    assert picked != [Chooser("c").pick("abc") for _ in range(3000)]


def test_some_takes_none_twice():
    assert sorted(Chooser("d").some("abc", 5)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [("a {b|c", "without its }"), ("a b} c", "too many"), ("a | b", "outside of braces")],
)
def test_forms_that_do_not_match(line, complaint):
    with pytest.raises(ValueError, match=complaint):
        parse_form(line)


def test_a_form_has_tags():
    form = parse_form("(child !girl) Once")
    assert form.fits({"child", "boy"}) and not form.fits({"child", "girl"}) and not form.fits(set())


def test_split_leaves_braces_whole():
    assert split("a | {b|c} d |", "|") == ["a", "{b|c} d", ""]


def test_a_row_of_the_wrong_length():
    with pytest.raises(ValueError, match="2 names"):
        parse_page("= x\nrow a, b:\n  1 ; 2 ; 3\n")


@pytest.mark.parametrize(
    ("found", "mended"),
    [
        ("a owl saw a one-eyed  cat .", "An owl saw a one-eyed cat."),
        ('"Where is it," asked Tom.', '"Where is it?" asked Tom.'),
        ('"It is over here?" asked Tom.', '"It is over here," said Tom.'),
        ('"Really?" asked Tom.', '"Really?" asked Tom.'),
        ('He said, "What a day!" and sat. but why?', 'He said, "What a day!" and sat. But why?'),
        ("And then, it stopped. the end.", "And then it stopped. The end."),
        ("One.\ntwo.", "One.\nTwo."),
    ],
)
def test_polish(found, mended):
    assert polish(found) == mended


def test_stories_are_always_the_same():
    told = [tell(number).text for number in range(20)]
    assert told == [tell(number).text for number in range(20)]
    assert len(set(told)) == 20
    assert tell(0, seed=1).text != told[0]


def test_an_unknown_plot():
    with pytest.raises(ValueError, match="found 'none'"):
        tell(0, plot="none")


@pytest.mark.parametrize("plot", PLOTS)
def test_a_plot(plot):
    """No marks of the grammar are left, speech is closed, and the hero stays who he is."""
    for number in range(examples(40)):
        story = tell(number, plot=plot)
        text = story.text
        assert not re.search(r"[$@{}|;]|  | [.,!?]|[.,!?]{2}|\b(\w+) \1\b|\b[Aa] [aeio]", text), (
            text
        )
        assert all(part.count('"') % 2 == 0 for part in text.split("\n")), text
        assert all(part[0] in '"' or part[0].isupper() for part in text.split("\n")), text
        assert story.hero in text and len(set(names(text))) <= 2, text
        assert 60 < len(text.split()) < 200, text
        assert {w.lower() for w in words(text) if not is_name(w)} <= vocabulary(), text


@pytest.mark.parametrize("plot", PLOTS)
def test_a_boy_and_a_girl_have_the_same_story(plot, monkeypatch):
    """Told of boys and told of girls, only pronouns differ, and those of the heroes all do."""
    pairs = {("he", "she"), ("him", "her"), ("his", "her"), ("himself", "herself"), ("boy", "girl")}
    for number in range(examples(15)):
        told = []
        for sex in ("boy", "girl"):
            with monkeypatch.context() as patch:
                patch.setattr(teller, "meet", lambda *who, sex=sex: replace(meet(*who), sex=sex))
                told.append(re.findall(r"[\w']+", tell(number, plot=plot).text))
        differing = [(a, b) for a, b in zip(*told, strict=True) if a != b]
        assert {(a.lower(), b.lower()) for a, b in differing} <= pairs, differing


def test_stories_have_variety():
    stories = [tell(number) for number in range(500)]
    assert {story.plot for story in stories} == set(PLOTS)
    told = {w.lower() for story in stories for w in words(story.text) if not is_name(w)}
    assert len(told) > 1650
    assert len({story.text[:60] for story in stories}) > 440
    assert len({story.text for story in stories}) == 500
    faulty = [found for story in stories if (found := faults(story.text))]
    assert len(faulty) < 0.03 * len(stories), faulty


def test_said_again():
    text = "Tom had a mom. Tom's mom and Mia and Dad met Lumi. Some of them saw Lumi and Mia."
    found = [(start, text[start:end]) for start, end in said_again(text)]
    assert found == [(15, "Tom"), (21, "mom"), (68, "Lumi"), (77, "Mia")]


def test_faults():
    good = "Tom had a cat. Tom and Mia laughed."
    assert faults(good) == []
    assert faults(good, ended=False) == faults("Tom had a cat. Tom and Mia") == ["does not end"]
    assert faults("Tom had a cat. Mia laughed. Mia ran.") == ["loses its hero"]
    assert faults("Tom saw Mia. Tom saw Leo.") == ["loses its hero"]
    assert faults("Tom had a xylophone. Tom sang.") == ["has new words: xylophone"]


def test_the_stories_of_the_documentation_are_such():
    """The text with which the notebooks evaluate the bundled model."""
    stories = (DOCS / "stories.txt").read_text().split("\n\n")
    model = Llama.load(box.STORIES)
    assert len(stories) == 8 and not any(faults(story) for story in stories)
    assert all(len(model.tokenizer.encode(s.strip())) < model.config.seq_len for s in stories)
