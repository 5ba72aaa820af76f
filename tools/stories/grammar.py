"""The pages of texts/*.txt, and the forms of sentences on them.

A form is a line of text. In it
    {a|b|c}   is one of the three, `{|very }` is perhaps nothing; they nest
    $name     is a word of this story: chosen when first met, then always the same; $Name begins
              with a capital
    @name     is an item of the list `name`, chosen again each time
and `(tag !tag name=value)` in front says of which stories it may be part.

A page holds lists, `[name]` with a form a line or `[name] form | form`, and plots:
    = name                    begins a plot
    who: child animal         the heroes it is for: tags of which one must fit
    row a, b, c:              one of the lines that follow, `x ; y ; z`, sets $a, $b and $c
    set a: x | y              sets $a
    --                        a new paragraph
Everything else is a beat, ended by an empty line or the mark of the next: its lines are forms, of
which one is told. Under the mark `?` perhaps none is; under `~2` two are, in any order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

TEXTS = Path(__file__).parent / "texts"
_MARK = re.compile(r"[{|}]|\$[A-Za-z]+|@[a-z]+")
_GUARD = re.compile(r"\(([^)]*)\) ")
_MARKER = re.compile(r"(\?)?(?:~(\d))?\s*$")


@dataclass(frozen=True)
class Choice:
    """One of several forms, each a list of parts."""

    options: list[list]


@dataclass(frozen=True)
class Slot:
    """A word that stays the same through a story."""

    name: str


@dataclass(frozen=True)
class Fresh:
    """A list from which an item is chosen each time."""

    name: str


@dataclass(frozen=True)
class Form:
    """A line: the tags it wants and the parts it is made of."""

    tags: tuple[str, ...]
    parts: list

    def fits(self, tags: set[str]) -> bool:
        """Whether a story with these tags may hold it."""
        return all((tag[1:] not in tags) if tag[0] == "!" else tag in tags for tag in self.tags)


@dataclass(frozen=True)
class Beat:
    """Forms of which `count` are told, or perhaps none."""

    forms: list[Form]
    count: int = 1
    optional: bool = False


@dataclass(frozen=True)
class Row:
    """Lines of which one gives a value to each name."""

    names: list[str]
    lines: list[list[Form]]


@dataclass(frozen=True)
class Break:
    """A new paragraph."""


@dataclass
class Plot:
    """A story to be told in many ways."""

    name: str
    who: list[str] = field(default_factory=list)
    steps: list[Beat | Row | Break] = field(default_factory=list)


def parse_form(line: str) -> Form:
    """Read a line. Raises ValueError for braces that do not match."""
    tags: tuple[str, ...] = ()
    if guard := _GUARD.match(line):
        tags, line = tuple(guard[1].split()), line[guard.end() :]
    levels: list[list[list]] = [[[]]]
    at = 0
    for mark in [*_MARK.finditer(line), None]:
        if text := line[at : mark.start() if mark else None]:
            levels[-1][-1].append(text)
        if mark is None:
            break
        at, found = mark.end(), mark[0]
        if found == "{":
            levels.append([[]])
        elif found == "|":
            levels[-1].append([])
        elif found == "}":
            options = levels.pop()
            if not levels:
                raise ValueError(f"a }} too many: {line}")
            levels[-1][-1].append(Choice(options))
        else:
            levels[-1][-1].append((Slot if found[0] == "$" else Fresh)(found[1:]))
    if len(levels) > 1:
        raise ValueError(f"a {{ without its }}: {line}")
    if len(levels[0]) > 1:
        raise ValueError(f"a | outside of braces: {line}")
    return Form(tags, levels[0][0])


def split(text: str, mark: str) -> list[str]:
    """Split at marks that are not inside braces."""
    found, depth = [""], 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if character == mark and not depth:
            found.append("")
        else:
            found[-1] += character
    return [part.strip() for part in found]


def parse_page(text: str) -> tuple[dict[str, list[Form]], list[Plot]]:
    """The lists and the plots of a page. Raises ValueError for what it cannot read."""
    lists: dict[str, list[Form]] = {}
    plots: list[Plot] = []
    for block in re.split(r"\n\s*\n", re.sub(r"^#.*\n", "", text, flags=re.M)):
        lines = [line for line in block.splitlines() if line.strip()]
        if lines and lines[0][0] == "=":
            plots.append(Plot(lines.pop(0)[1:].strip()))
        if not lines:
            continue
        if lines[0][0] == "[":
            name, rest = lines[0][1:].split("]", 1)
            forms = split(rest, "|") if rest.strip() else lines[1:]
            lists[name] = [parse_form(form.strip("\n")) for form in forms]
        else:
            _add_steps(plots[-1], lines)
    return lists, plots


def _add_steps(plot: Plot, lines: list[str]) -> None:
    while lines and (found := re.match(r"(who|row|set|--)", lines[0])):
        line = lines.pop(0)
        if found[1] == "who":
            plot.who.extend(line.partition(":")[2].split())
        elif found[1] == "--":
            plot.steps.append(Break())
        elif found[1] == "set":
            name, _, values = line[4:].partition(":")
            rows = [[parse_form(value)] for value in split(values, "|")]
            plot.steps.append(Row([name.strip()], rows))
        else:
            names = split(line[4:].strip().rstrip(":"), ",")
            rows = []
            while lines and lines[0][0] == " ":
                rows.append([parse_form(part) for part in split(lines.pop(0).strip(), ";")])
                if len(rows[-1]) != len(names):
                    raise ValueError(f"{plot.name}: {len(names)} names, but {rows[-1]}")
            plot.steps.append(Row(names, rows))
    while lines:
        marker = _MARKER.match(lines[0])
        optional, count = marker.groups() if marker else (None, None)
        lines = lines[bool(marker) :]
        end = next((i for i, line in enumerate(lines) if _MARKER.match(line)), len(lines))
        forms = [parse_form(line) for line in lines[:end]]
        plot.steps.append(Beat(forms, int(count or 1), bool(optional)))
        lines = lines[end:]


@cache
def pages() -> tuple[dict[str, list[Form]], list[Plot]]:
    """All lists and plots of texts/."""
    lists: dict[str, list[Form]] = {}
    plots: list[Plot] = []
    for path in sorted(TEXTS.glob("*.txt")):
        page_lists, page_plots = parse_page(path.read_text(encoding="utf-8"))
        lists |= page_lists
        plots += page_plots
    return lists, plots
