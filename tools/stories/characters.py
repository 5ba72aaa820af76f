"""The characters of the stories: names, sexes and kinds."""

from __future__ import annotations

from dataclasses import dataclass

from tools.stories.chooser import Chooser

GIRLS = "Lily Mia Anna Sue Ella Rosie Lucy Emma Nora Ruby Zoe Amy Clara Molly Daisy Maya".split()
BOYS = "Tom Tim Ben Max Sam Leo Jack Finn Oscar Noah Theo Billy Peter Owen Luke Milo".split()
EITHER = "Pip Coco Dot Biscuit Pepper Button".split()
NAMES = frozenset(GIRLS + BOYS + EITHER)
# New names, such as Lumi or Kevo, from sounds of which few make words.
_SOUNDS = (
    "b d k l m n r s t v z".split(),
    "a e i o u".split(),
    "b l m n r v".split(),
    "a i o u".split(),
)
_PRONOUNS = {"girl": ("she", "her", "her", "herself"), "boy": ("he", "him", "his", "himself")}
ADULTS = {
    "mom": "girl",
    "dad": "boy",
    "grandma": "girl",
    "grandpa": "boy",
}


@dataclass(frozen=True)
class Character:
    """A hero or a friend."""

    name: str
    sex: str

    def slots(self, prefix: str = "") -> dict[str, str]:
        """The pronouns, as slots named prefix + he, him, his and self."""
        names = [prefix + word for word in ("he", "him", "his", "self")]
        return dict(zip(names, _PRONOUNS[self.sex], strict=True))


def meet(chooser: Chooser, animal: bool, other_than: str = "") -> Character:
    """A character with a name; one in ten has a name that no other story has."""
    sex = chooser.pick(("girl", "boy"))
    if chooser.chance(0.1):
        name = "".join(chooser.pick(sound) for sound in _SOUNDS).capitalize()
    else:
        names = GIRLS if sex == "girl" else BOYS
        name = chooser.pick(names + EITHER if animal else names)
    return Character(name, sex) if name != other_than else meet(chooser, animal, other_than)


def adult(chooser: Chooser) -> dict[str, str]:
    """Slots for somebody grown up: mom, mhe, mhim, mhis."""
    noun = chooser.pick(("mom", "mom", "dad", "dad", "grandma", "grandpa"))
    return {"mom": noun, **Character(noun, ADULTS[noun]).slots("m")}


def is_name(word: str) -> bool:
    """Whether somebody may be called so, known names and new ones."""
    if word in NAMES:
        return True
    if len(word) != len(_SOUNDS) or not word[0].isupper():
        return False
    return all(a in sound for a, sound in zip(word.lower(), _SOUNDS, strict=False))
