"""The command `chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from llama2np import box
from llama2np.cli import engine, sampling
from llama2np.cli.flags import (
    Parser,
    check_length,
    check_utf8,
    flag_value,
    joined,
    number,
    path_value,
    piped,
    text_value,
)
from llama2np.cli.model import MODEL_HELP, TOKENIZER_HELP, load_model
from llama2np.cli.screen import Screen, in_a_terminal
from llama2np.decoding.chat import Chat
from llama2np.text.settings import read_template

_QUOTES = '"""'
_HELP = f"""\
/clear          forget the conversation, but not the system prompt
/system TEXT    change the system prompt; without a text, show it
/save FILE      write the conversation to a JSON file
/load FILE      continue the conversation in a file
/quit           end the chat
/help           show this
{_QUOTES}             begin a message of several lines, and end it; or end a line with \\
Ctrl-C          end an answer, or drop what is typed
Ctrl-D          end the chat"""


def main(argv: Sequence[str], prog: str) -> int:
    """Chat with a model; return the exit status."""
    return in_a_terminal(prog, lambda screen: _run(_parse(argv, prog), prog, screen))


def check_can_chat(model: str, prog: str) -> None:
    """Refuse the bundled models, which only tell stories. prog: the command to run a model."""
    if box.in_box(model):
        raise ValueError(
            f"{model} is not a chat model, it only tells stories: name a chat model, "
            f"{prog} llama2_7b_chat.bin -m chat, or let this one tell a story: {prog}"
        )


def converse(chat: Chat, screen: Screen, first: str | None = None) -> None:
    """Read messages and commands, and write answers, until the input ends.

    first: the first message, if it is known.
    """
    if sys.stdin.isatty():
        screen.note("/help shows the commands")
    while True:
        try:
            text = _message(screen) if first is None else first
        except EOFError:
            return
        except KeyboardInterrupt:  # it drops the line
            if not sys.stdin.isatty():
                raise
            screen.write("\n")
            screen.note("Ctrl-D ends the chat")
            continue
        first = None
        if text.strip() == "/quit":
            return
        try:
            if text.startswith("/"):
                _command(chat, screen, text)
            elif text.strip():
                _answer(chat, screen, text)
        except (ValueError, OSError) as error:
            if isinstance(error, BrokenPipeError) or not sys.stdin.isatty():
                raise
            screen.note(str(error))


def _run(options: argparse.Namespace, prog: str, screen: Screen) -> None:
    check_can_chat(options.model, "llama2np run")
    template = None if options.template is None else read_template(options.template)
    model = load_model(options)
    chat = model.chat(
        options.system,
        positions=options.steps,
        template=template,
        **sampling.chat_options(options),
    )
    if options.load is not None:
        chat.load(options.load)
        if options.system:
            chat.system = options.system
    converse(chat, screen, options.prompt)


def _answer(chat: Chat, screen: Screen, text: str) -> None:
    if chat.full:
        raise ValueError(_full(chat))
    answer = chat.send(text)
    try:
        for piece in answer:
            screen.write(piece)
    except KeyboardInterrupt:
        pass  # ends only this answer
    screen.write("\n")
    if chat.full:
        screen.note(_full(chat))


def _full(chat: Chat) -> str:
    return f"the context of {chat.positions:,} positions is full: /clear begins a new conversation"


def _command(chat: Chat, screen: Screen, line: str) -> None:
    name, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if name in ("/save", "/load") and not rest:
        raise ValueError(f"{name} needs the name of a file: {name} FILE")
    commands: dict[str, Callable[[], str]] = {
        "/clear": lambda: _cleared(chat),
        "/system": lambda: _system(chat, rest),
        "/save": lambda: _saved(chat, rest),
        "/load": lambda: _loaded(chat, rest),
        "/help": lambda: _HELP,
    }
    if name not in commands:
        raise ValueError(f"{name} is not a command; these are: {', '.join(commands)}")
    screen.note(commands[name]())


def _cleared(chat: Chat) -> str:
    chat.clear()
    return "a new conversation"


def _system(chat: Chat, text: str) -> str:
    if text:
        chat.system = text
        return "the system prompt is changed"
    return chat.system or "there is no system prompt"


def _saved(chat: Chat, name: str) -> str:
    chat.save(name)
    return f"{len(chat.messages)} messages are in {name}"


def _loaded(chat: Chat, name: str) -> str:
    chat.load(name)
    return f"{len(chat.messages)} messages from {name}"


def _message(screen: Screen) -> str:
    """A line; or several, between triple quotes or where all but the last end with a backslash.

    Raises EOFError.
    """
    prompt, more = ("> ", ". ") if sys.stdin.isatty() else ("", "")
    line = screen.ask(prompt)
    if line.lstrip().startswith(_QUOTES):
        lines = [line.lstrip().removeprefix(_QUOTES)]
        while not lines[-1].rstrip().endswith(_QUOTES):
            lines.append(screen.ask(more))
            check_length(sum(map(len, lines)))
        lines[-1] = lines[-1].rstrip().removesuffix(_QUOTES)
        return "\n".join(lines).removeprefix("\n").removesuffix("\n")
    while line.endswith("\\"):
        line = line[:-1] + "\n" + screen.ask(more)
        check_length(len(line))
    return line


def _parse(argv: Sequence[str], prog: str) -> argparse.Namespace:
    parser = Parser(
        prog=prog,
        description="Talk with a model in its own chat template. /help shows the commands.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", help=MODEL_HELP)
    sampling.add_flags(add)
    add(
        *("-n", "--steps"),
        type=number(int, 0, None),
        metavar="N",
        help="the most positions, those of all messages included (default 0: the model's context)",
    )
    add(
        *("-i", "--prompt"),
        type=text_value,
        metavar="TEXT",
        help="the first message; - reads it from standard input",
    )
    add(*("-y", "--system"), type=text_value, metavar="TEXT", help="the system prompt")
    add("--load", type=path_value, metavar="FILE", help="continue the conversation of /save FILE")
    add(
        "--template",
        type=path_value,
        metavar="FILE",
        help="a chat template (Jinja) in place of the model's own",
    )
    add(*("-z", "--tokenizer"), type=flag_value, metavar="FILE", help=TOKENIZER_HELP)
    engine.add_flags(parser)
    options = parser.parse_args(list(joined(argv, parser)))
    if options.prompt == "-":
        options.prompt = piped()
    for flag in ("prompt", "system"):
        check_utf8(getattr(options, flag) or "", f"--{flag}")
    return options
