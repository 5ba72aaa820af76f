"""The command line: flags to library. The only flags, printing and exit statuses.

One module for each command, with a function `main(argv, prog)` that returns the exit status; only
that of the command asked for is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from llama2np import __version__, advice, box
from llama2np.cli.flags import reported
from llama2np.output import printable

COMMANDS = {
    "run": "continue a text, or chat",
    "export": "convert a checkpoint or a tokenizer",
    "inspect": "say what a checkpoint holds",
    "lens": "show what a model would say after each of its blocks",
    "attend": "draw where its heads look",
    "perplexity": "measure how well it foretells a text",
    "bench": "measure how fast a model is here",
    "warmup": "compile everything ahead",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command `llama2np`: the first word says what to do."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in COMMANDS:
        command = import_module(f"llama2np.cli.{argv[0]}")
        return int(command.main(argv[1:], prog=f"llama2np {argv[0]}"))
    return reported("llama2np", lambda: _without_command(argv))


def _without_command(argv: Sequence[str]) -> int:
    if argv == ["--version"]:
        print(f"llama2np {__version__}")
        return 0
    if argv in ([], ["-h"], ["--help"]):
        print(_usage(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 1
    found = f"expected one of {', '.join(COMMANDS)}; found {argv[0]!r}"
    raise ValueError(printable(f"{found}{_suggestion(argv[0])}"))


def _suggestion(word: str) -> str:
    """A model in place of a command is most likely to be run."""
    if word in box.NAMES or os.path.exists(word):
        return f"; did you mean llama2np run {word}?"
    return advice.did_you_mean(word, [*COMMANDS, "--help", "--version"])


def _usage() -> str:
    lines = ["usage: llama2np COMMAND ...", ""]
    lines += [f"  {name:<12}{text}" for name, text in COMMANDS.items()]
    return "\n".join([*lines, "", "llama2np COMMAND --help shows the flags of each"])
