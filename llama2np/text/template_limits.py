"""A sandbox for chat templates that bounds their time and memory.

jinja2's own sandbox keeps a template away from Python, but allows endless work: loops in loops,
{{ "x" * 10**10 }}, a text or a list that doubles in each turn, a macro that calls itself twice. So

- each value that is made is weighed: results of filters, calls and operators, lists, texts that are
  joined, each output. The sum of the weights, in characters and items, and the weight of one value
  are limited, and so is the time; what multiplies (`*`, join, replace) is weighed in advance;
- each turn of a loop and each call of a macro weighs as much as the constant text in it;
- there are only filters and methods whose result is not larger than their arguments, or that are
  weighed in advance.

The limits are a hundred times what the longest conversations need.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from types import BuiltinMethodType
from typing import Any, cast

from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MOST = 2**26  # of all weights: characters and items
_LARGEST = 2**24  # of one value
_SECONDS = 5.0
_ITEM = 16  # the weight of an item of a list, and of any value that is not a text
_TURN = 256  # the weight of a turn of a loop, and of a call, beside the template's text
_LARGEST_NUMBER = 2**64
_FILTERS = (
    "abs attr batch capitalize count default d dictsort e escape first float format groupby indent "
    "int items join last length list lower map max min reject rejectattr replace reverse round "
    "safe select selectattr slice sort string striptags sum title tojson trim truncate unique "
    "upper urlencode wordcount"
).split()
_GLOBALS = ("range", "dict", "namespace", "cycler", "joiner")
_METHODS = frozenset(
    "capitalize casefold count endswith find get index isalnum isalpha isdigit isspace islower "
    "isupper items join keys lower lstrip removeprefix removesuffix replace rfind rstrip split "
    "splitlines startswith strip swapcase title upper values".split()
)


class TooMuch(RuntimeError):
    """The template needs more time or memory than it may."""


class Meter:
    """Counts what one rendering makes."""

    def __init__(self) -> None:
        self.left = MOST
        self._end = time.monotonic() + _SECONDS

    def charge(self, weight: int) -> None:
        """Count `weight`. Raises TooMuch."""
        self.left -= weight + 1
        if weight > _LARGEST or self.left < 0:
            raise TooMuch("needs too much memory or too many steps: it is stopped")
        if time.monotonic() > self._end:
            raise TooMuch(f"takes more than {_SECONDS:.0f} seconds: it is stopped")


# The meter of the rendering that is running in this thread.
_METER: ContextVar[Meter] = ContextVar("meter")


@contextmanager
def metered() -> Iterator[None]:
    """In the block, one template may be rendered."""
    token = _METER.set(Meter())
    try:
        yield
    finally:
        _METER.reset(token)


def weight(value: Any, most: int = _LARGEST + 1) -> int:
    """The characters and items of a value, and of all values in it; counting stops at `most`."""
    total, waiting = 0, [value]
    while waiting and total < most:
        one = waiting.pop()
        total += _ITEM
        if isinstance(one, str | bytes):
            total += len(one)
        elif isinstance(one, dict | list | tuple | set | frozenset):
            if _ITEM * len(one) >= most:
                return most
            waiting += [*one.keys(), *one.values()] if isinstance(one, dict) else one
        elif isinstance(one, int) and not -_LARGEST_NUMBER < one < _LARGEST_NUMBER:
            total += most
    return total


def _outside(value: Any) -> int:
    """The weight of a value without the values in it."""
    if isinstance(value, dict | list | tuple | set | frozenset):
        return _ITEM * (len(value) + 1)
    return weight(value)


class Limited(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with these limits."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[loopcontrols, Generation],
            finalize=self._output,
        )
        self.constant = 0  # characters of the template
        self.globals = {name: self.globals[name] for name in _GLOBALS}
        self.filters = {name: self.filters[name] for name in _FILTERS}

    @property
    def meter(self) -> Meter:
        """The meter of the rendering that is running."""
        return _METER.get()

    def charged(self, value: Any) -> Any:
        """`value`, weighed."""
        self.meter.charge(weight(value))
        return value

    def from_string(self, source: Any, *_: Any, **__: Any) -> Any:
        """Compile a template whose loops, lists and texts are weighed."""
        self.constant = len(source)
        self.filters |= {
            **{name: self._weighed(name, made) for name, made in self.filters.items()},
            " counted": self._counted,
            " charged": self.charged,
            " joined": self._joined,
        }
        tree = _Weighing().visit(self.parse(source))
        code = self.compile(tree)
        return self.template_class.from_code(self, code, self.make_globals(None))

    def call(self, context: Any, called: Any, *arguments: Any, **options: Any) -> Any:
        """Call a macro, a method or a global, as jinja2 does for each call in a template."""
        plain = isinstance(called, BuiltinMethodType)  # a macro writes constant text
        self.meter.charge(_TURN + (0 if plain else self.constant))
        _check_method(called, arguments, self.meter)
        return self.charged(super().call(context, called, *arguments, **options))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right`."""
        if operator == "*":
            self.meter.charge(_product(left, right))
        elif operator == "**" and not (abs(left) < 2**16 and abs(right) <= 64):
            raise TooMuch("computes a power that is too large")
        elif operator == "%" and isinstance(left, str):
            _check_format(left, self.meter)
            self.charged(right)
        return self.charged(super().call_binop(context, operator, left, right))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Whether a template may use an attribute: of texts and lists only some methods."""
        if not super().is_safe_attribute(obj, attr, value):
            return False
        plain = isinstance(obj, str | bytes | list | tuple | dict | int | float)
        return not plain or not callable(value) or attr in _METHODS

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """jinja2's safe form of a text's method format, which checks the widths, too."""
        if (safe := super().wrap_str_format(value)) is None:
            return None

        def run(*arguments: Any, **options: Any) -> str:
            _check_format(value.__self__, self.meter)
            return safe(*arguments, **options)

        return run

    def _weighed(self, name: str, made: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(made)  # with jinja2's marks for filters that take the context or the environment
        def run(*arguments: Any, **options: Any) -> Any:
            values = [one for one in arguments if not hasattr(one, "environment")]
            self.meter.charge(sum(map(_outside, values)))
            if name in ("format", "indent", "join", "replace", "batch", "slice", "truncate"):
                values = [one for one in values if one is not self]
                _check_filter(name, values, options, self.meter)
            found = made(*arguments, **options)
            found = list(found) if isinstance(found, Iterator) else found
            self.meter.charge(_outside(found))  # the items of a list were weighed before
            return found

        return run

    def _output(self, value: Any) -> Any:
        return self.charged(value)

    def _counted(self, values: Iterable[Any], constant: int) -> Iterator[Any]:
        """`values`, one after the other; each counts as much as the text in the loop."""
        for value in values:
            self.meter.charge(_TURN + constant)
            yield value

    def _joined(self, values: list[Any]) -> str:
        """The operands of `~`, joined."""
        self.charged(values)
        return "".join(map(str, values))


class Generation(Extension):
    """transformers' {% generation %} ... {% endgeneration %}, which only marks answers."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The nodes in the block."""
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class _Weighing(NodeTransformer):
    """Puts the filters that weigh around loops, lists and joined texts."""

    def visit_For(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        node.iter = _filtered(node.iter, " counted", nodes.Const(text))
        return cast(nodes.Node, node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), " joined")

    def _made(self, node: Any) -> Any:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else _filtered(node, " charged")

    visit_List = visit_Tuple = visit_Dict = _made


def _filtered(node: nodes.Expr, name: str, *arguments: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(arguments), [], None, None, lineno=node.lineno)


def _product(left: Any, right: Any) -> int:
    """The weight of left * right, if that is a repeated text or list."""
    for value, count in ((left, right), (right, left)):
        if isinstance(value, str | list | tuple) and isinstance(count, int):
            return weight(value) * max(count, 0)
    return 0


def _check_method(called: Any, arguments: tuple[Any, ...], meter: Meter) -> None:
    """Weigh what a method of a text makes, before it is made."""
    name, text = getattr(called, "__name__", ""), getattr(called, "__self__", None)
    if isinstance(text, str) and arguments and name in ("join", "replace"):
        values = [arguments[0], text] if name == "join" else [text, *arguments]
        _check_filter(name, values, {}, meter)


def _check_filter(name: str, values: list[Any], options: dict[str, Any], meter: Meter) -> None:
    """Weigh what a filter that multiplies makes, before it is made."""
    if name == "join":
        items = values[0] if isinstance(values[0], list | tuple) else list(values[0])
        between = values[1] if len(values) > 1 else options.get("d", "")
        meter.charge(weight(items) + len(items) * weight(between))
    elif name == "replace":
        text, old, new = (str(one) for one in (*values[:3], *[""] * (3 - len(values))))
        meter.charge(len(text) + (text.count(old) if old else len(text) + 1) * len(new))
    elif name == "format":
        _check_format(str(values[0]), meter)
    else:
        numbers = [one for one in (*values[1:], *options.values()) if isinstance(one, int)]
        lines = str(values[0]).count("\n") + 1 if isinstance(values[0], str) else 1
        widths = [weight(one) for one in (*values[1:], *options.values())]
        meter.charge(lines * (sum(map(abs, numbers)) + sum(widths)))


def _check_format(form: str, meter: Meter) -> None:
    """Refuse a format such as "%1000000000d"."""
    digits = 0
    for character in form:
        digits = digits + 1 if character.isdigit() else 0
        if digits > 4 or character == "*":
            raise TooMuch("formats a text with a width that is too large")
    meter.charge(len(form))
