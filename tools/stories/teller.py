"""Tell story number N."""

from __future__ import annotations

from dataclasses import dataclass

from tools.stories.characters import adult, meet
from tools.stories.chooser import Chooser
from tools.stories.grammar import Beat, Choice, Form, Fresh, Plot, Row, Slot, pages
from tools.stories.polish import polish

# @who and @friendwho are said once; after that it is the name alone.
_MEETINGS = {"who": "hero", "friendwho": "friend"}


@dataclass(frozen=True)
class Story:
    """A text, what it is about and how surprising its choices were."""

    text: str
    plot: str
    hero: str
    nats: float


class Teller:
    """One story while it is being told."""

    def __init__(self, chooser: Chooser, plot: Plot):
        self._chooser = chooser
        self._lists = pages()[0]
        self._slots: dict[str, str] = {}
        self._tags: set[str] = set()
        self._met: set[str] = set()  # the slots that were told
        self._make_hero(plot)
        self.hero = self._slots["hero"]
        self.text = self._tell(plot)

    def _make_hero(self, plot: Plot) -> None:
        kind = self._chooser.pick(plot.who)
        hero = meet(self._chooser, kind != "child")
        self._tags |= {kind, hero.sex}
        self._slots |= {
            "hero": hero.name,
            "girl": hero.sex,
            "paw": "hand",
            "snack": "a cookie",
            "ran": "ran",
            **hero.slots(),
        }
        if kind != "child":
            fitting = [f for f in self._lists["species"] if kind in ("animal", *f.tags)]
            self._set_animal("", self._chooser.pick(fitting))
            self._tags.add("animal")

    def _set_animal(self, prefix: str, form: Form) -> None:
        """The row of a species: its tags are the story's, its columns are slots."""
        names = ("animal", "paw", "den", "home", "snack", "ran", "cry")
        values = "".join(form.parts[:1]).split(";")
        if prefix:
            self._slots["fanimal"] = values[0].strip()
            return
        self._tags |= {*form.tags, values[0].strip()}
        self._slots |= {n: v.strip() for n, v in zip(names, values, strict=True)}

    def _tell(self, plot: Plot) -> str:
        paragraphs: list[list[str]] = [[]]
        for step in plot.steps:
            if isinstance(step, Row):
                line = self._chooser.pick([x for x in step.lines if x[0].fits(self._tags)])
                for name, form in zip(step.names, line, strict=True):
                    self._set(name, self._expand(form.parts))
            elif isinstance(step, Beat):
                paragraphs[-1] += self._beat(step)
            else:
                paragraphs.append([])
        text = "\n".join(" ".join(sentences) for sentences in paragraphs if sentences)
        return polish(text)

    def _beat(self, beat: Beat) -> list[str]:
        forms = [form for form in beat.forms if form.fits(self._tags)]
        if not forms or beat.optional and not self._chooser.chance(0.5):
            return []
        return [self._expand(form.parts) for form in self._chooser.some(forms, beat.count)]

    def _set(self, name: str, value: str) -> None:
        self._slots[name] = value
        self._tags.add(f"{name}={value}")

    def _expand(self, parts: list) -> str:
        return "".join(part if isinstance(part, str) else self._word(part) for part in parts)

    def _word(self, part: Choice | Slot | Fresh) -> str:
        if isinstance(part, Choice):
            return self._expand(self._chooser.pick(part.options))
        if isinstance(part, Fresh):
            known = _MEETINGS.get(part.name)
            return self._slots[known] if known in self._met else self._from_list(part.name)
        name = part.name
        if name[0].isupper() and name not in self._slots:
            word = self._word(Slot(name[0].lower() + name[1:]))
            return word[0].upper() + word[1:]
        if name not in self._slots:
            self._choose_slot(name)
        self._met.add(name)
        return self._slots[name]

    def _choose_slot(self, name: str) -> None:
        if name in ("friend", "fhe", "fhim", "fhis", "fself", "fgirl", "fanimal"):
            animal = "animal" in self._tags
            friend = meet(self._chooser, animal, self._slots["hero"])
            self._slots |= {"friend": friend.name, "fgirl": friend.sex, **friend.slots("f")}
            if animal:
                near = "wild" if "wild" in self._tags else "farm"
                others = [f for f in self._lists["species"] if near in f.tags]
                others = [f for f in others if not f.parts[0].startswith(self._slots["animal"])]
                self._set_animal("f", self._chooser.pick(others))
        elif name in ("mom", "mhe", "mhim", "mhis", "mself"):
            self._slots |= adult(self._chooser)
        else:
            self._set(name, self._from_list(name))

    def _from_list(self, name: str) -> str:
        if name not in self._lists:
            raise ValueError(f"@{name} or ${name}: no such list, nor does the plot set it")
        forms = [form for form in self._lists[name] if form.fits(self._tags)]
        return self._expand(self._chooser.pick(forms).parts)


def tell(number: int, seed: int = 0, plot: str | None = None) -> Story:
    """Story `number` of the endless book `seed`, always the same; of one plot if it is named."""
    chooser = Chooser(f"{seed}/{number}")
    found = [p for p in pages()[1] if plot in (None, p.name)]
    if not found:
        raise ValueError(f"plot: expected one of {[p.name for p in pages()[1]]}, found {plot!r}")
    chosen = chooser.pick(found)
    teller = Teller(chooser, chosen)
    return Story(teller.text, chosen.name, teller.hero, chooser.nats)
