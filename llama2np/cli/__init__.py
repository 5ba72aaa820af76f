"""The command line. Only this package parses flags, prints, and sets exit statuses.

Each command has a module with a function `main(argv, prog)` that returns the exit status. Only the
module of the command that runs is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

from llama2np import __version__, advice, box
from llama2np.cli.flags import reported
from llama2np.mpi.launch import launched
from llama2np.output import printable
from llama2np.store.catalogue import CATALOGUE
from llama2np.store.names import find

COMMANDS = {
    "run": "continue a text, or chat",
    "chat": "talk with a model",
    "generate": "continue all prompts of a file, many at once",
    "embed": "turn all texts of files into vectors",
    "serve": "answer OpenAI's clients over HTTP",
    "pull": "download a model by its name",
    "list": "list the models that were downloaded",
    "rm": "remove downloaded models",
    "export": "convert a checkpoint or a tokenizer",
    "inspect": "describe a checkpoint",
    "lens": "show the next token that a model would predict after each of its blocks",
    "attend": "draw the attention maps of a model",
    "perplexity": "measure how well a model predicts a text",
    "train": "train a network from scratch",
    "finetune": "train a model further on texts, or to classify them",
    "classify": "choose a label for each text",
    "tokenizer": "make a tokenizer from texts",
    "bench": "measure how fast a model is on this machine",
    "warmup": "compile all kernels in advance",
}

# A module of the name `list` would hide Python's own in this package.
_MODULES = {"list": "pulled"}


def main(argv: Sequence[str] | None = None) -> int:
    """The command `llama2np`: the first argument is the name of a command."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in COMMANDS:
        return start(argv[0], argv[1:], f"llama2np {argv[0]}")
    return reported("llama2np", lambda: _without_command(argv))


def start(name: str, argv: Sequence[str], prog: str) -> int:
    """Run the command of that name; return its exit status. Under mpirun, all ranks run it."""
    command = import_module(f"llama2np.cli.{_MODULES.get(name, name)}")
    if launched():
        from llama2np.cli.ranks import on_ranks

        return on_ranks(name, prog, lambda: int(command.main(argv, prog=prog)))
    return int(command.main(argv, prog=prog))


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
    """The end of the error message: a model in place of a command probably should be run."""
    if CATALOGUE.get(word) and find(word) is None:
        return f"; did you mean llama2np pull {word}?"
    if word in box.NAMES or os.path.exists(word) or find(word):
        return f"; did you mean llama2np run {word}?"
    return advice.did_you_mean(word, [*COMMANDS, "--help", "--version"])


def _usage() -> str:
    lines = ["usage: llama2np COMMAND ...", ""]
    lines += [f"  {name:<12}{text}" for name, text in COMMANDS.items()]
    return "\n".join([*lines, "", "llama2np COMMAND --help shows the flags of each"])
