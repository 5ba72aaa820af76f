"""The command line: run.c's flags on the library. The only flags, printing and exit statuses."""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from llama2np import __version__, kernels
from llama2np.checkpoint import read_header
from llama2np.cli_flags import (
    INTERRUPTED,
    PIPE_CLOSED,
    Parser,
    flag_value,
    joined,
    number,
    on_interrupt,
    one_line,
)
from llama2np.llama import Llama

# All control characters but white space: a model must not drive the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f]")


def main(argv: Sequence[str] | None = None) -> int:
    """The command `llama2np`: the first word says what to do."""
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = {"run": run, "export": _export, "inspect": _inspect}
    if argv and argv[0] in commands:
        return commands[argv[0]](argv[1:], prog=f"llama2np {argv[0]}")
    if argv == ["--version"]:
        print(f"llama2np {__version__}")
        return 0
    print(
        "usage: llama2np run MODEL [flags]; llama2np export OUT [flags]; llama2np inspect FILE; "
        "llama2np run --help",
        file=sys.stderr,
    )
    return 0 if argv in (["-h"], ["--help"]) else 1


def _export(argv: Sequence[str], prog: str) -> int:
    from llama2np.cli_export import export

    return export(argv, prog)


def _inspect(argv: Sequence[str], prog: str) -> int:
    from llama2np.cli_export import inspect

    return inspect(argv, prog)


def run(argv: Sequence[str], prog: str, int8_only: bool = False) -> int:
    """Generate or chat, as llama2.c's `run` (or `runq`: int8_only); return the exit status."""
    screen = _Screen()
    try:
        with on_interrupt(screen.interrupt):
            return _run(argv, prog, int8_only, screen)
    except BrokenPipeError:
        sys.stdout = None  # so that Python does not try to flush it at exit
        return PIPE_CLOSED


def _run(argv: Sequence[str], prog: str, int8_only: bool, screen: _Screen) -> int:
    try:
        options = _parse(argv, prog)
        if options.threads is not None:
            kernels.set_threads(options.threads)
        if sys.stderr.isatty():
            kernels.on_first_compile(lambda: screen.note("compiling the kernels, this once ..."))
        if int8_only and (version := read_header(options.model).version) != 2:
            raise ValueError(
                f"{options.model}: version {version}, float32; expected version 2, int8: use "
                f"run.py, or quantize it: export.py OUT.bin --version 2 --bin {options.model}"
            )
        model = Llama.load(options.model, options.tokenizer)
        (_chat if options.mode == "chat" else _generate)(model, options, screen)
        screen.end_line()
        return 0
    except KeyboardInterrupt:
        screen.write("\n")
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except (ValueError, OSError, MemoryError) as error:
        with suppress(OSError):  # where it is the output that failed
            screen.end_line()
        print(f"{prog}: {one_line(error)}", file=sys.stderr)
        return 1


def _generate(model: Llama, options: argparse.Namespace, screen: _Screen) -> None:
    """Print the prompt as its tokens spell it, then what follows, then the speed."""
    prompt = options.prompt or ""
    tokens = model.tokenizer.encode(prompt)
    context = model.config.seq_len
    steps = min(options.steps or context, context)  # counts positions, the prompt's too
    pieces = model.generate(
        prompt,
        max_new_tokens=max(steps - len(tokens) + 1, 0),
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
    )
    screen.write(model.tokenizer.decode(tokens[: steps + 1]))
    count, start = 0, 0.0
    for piece in pieces:
        screen.write(piece)
        count += 1
        start = start or time.perf_counter()  # the first token may have waited for the disk
    elapsed = time.perf_counter() - start
    screen.write("\n")
    if count > 1:
        print(f"achieved tok/s: {(count - 1) / elapsed:f}", file=sys.stderr)


def _chat(model: Llama, options: argparse.Namespace, screen: _Screen) -> None:
    """Talk until the input or the context ends."""
    try:
        system = options.system
        if system is None:
            system = screen.ask("Enter system prompt (optional): ")
        chat = model.chat(
            system,
            temperature=options.temperature,
            top_p=options.top_p,
            seed=options.seed,
            positions=options.steps,
        )
        text = options.prompt
        while not chat.full:
            answer = chat.send(screen.ask("User: ") if text is None else text)
            screen.write("Assistant: ")
            try:
                for piece in answer:
                    screen.write(piece)
            except KeyboardInterrupt:
                pass  # stops the answer alone; at a prompt it leaves
            screen.write("\n")
            text = None
        screen.note(
            f"the context of {chat.positions} positions (-n) is full, the chat ends here; "
            f"the model has {model.config.seq_len} (-n 0)"
        )
    except EOFError:
        return


class _Screen:
    """Standard output, written at once, in UTF-8, and free of control characters."""

    def __init__(self) -> None:
        self._mid_line = False
        self._interrupted = False
        # Python has None for a stream that the shell has closed.
        if sys.stdin is None:
            sys.stdin = open(os.devnull)
        if sys.stdout is None:
            sys.stdout = open(os.devnull, "w")
        if sys.stderr is None:
            sys.stderr = open(os.devnull, "w")
        for stream in (sys.stdin, sys.stdout):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(encoding="utf-8", errors="strict")

    def interrupt(self, _signal: int, frame: FrameType | None) -> None:
        """Ctrl-C. In numba it waits for the next `write`: llvmlite's callbacks would swallow it."""
        while frame:
            if frame.f_globals["__name__"].partition(".")[0] in ("numba", "llvmlite"):
                self._interrupted = True
                return
            frame = frame.f_back
        raise KeyboardInterrupt

    def write(self, text: str) -> None:
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt
        text = _CONTROL.sub("", text)
        if text:
            sys.stdout.write(text)
            sys.stdout.flush()
            self._mid_line = not text.endswith("\n")

    def end_line(self) -> None:
        if self._mid_line:
            self.write("\n")

    def note(self, text: str) -> None:
        """A line to standard error, on a line of its own on a terminal."""
        if sys.stdout.isatty():
            self.end_line()
        print(text, file=sys.stderr, flush=True)

    def ask(self, question: str) -> str:
        """A line of standard input; on a terminal with line editing and history. EOFError."""
        if sys.stdin.isatty():
            try:
                import readline  # noqa: F401  (input() uses it from then on)
            except ImportError:
                pass
        self._mid_line = True
        line = input(question)
        self._mid_line = not sys.stdin.isatty()
        return line


def _parse(argv: Sequence[str], prog: str) -> argparse.Namespace:
    parser = Parser(
        prog=prog,
        description="Run a llama2.c checkpoint: continue a text, or chat.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", help="the checkpoint, a .bin file")
    add(
        *("-t", "--temperature"),
        type=number(float, 0, None),
        default=1.0,
        metavar="T",
        help="0 always takes the likeliest token, more is more daring (default 1.0)",
    )
    add(
        *("-p", "--top-p"),
        type=number(float, 0, 1),
        default=0.9,
        metavar="P",
        help="choose among the likeliest tokens that together exceed this probability; "
        "0 and 1 choose among all (default 0.9)",
    )
    add(
        *("-s", "--seed"),
        type=number(int, -(2**63), 2**64 - 1),
        metavar="N",
        help="the same seed gives the same text; 0 is a new one each time (default)",
    )
    add(
        *("-n", "--steps"),
        type=number(int, 0, None),
        default=256,
        metavar="N",
        help="positions to fill, the prompt's included; 0 is the model's context (default 256)",
    )
    add(
        *("-i", "--prompt"),
        type=flag_value,
        metavar="TEXT",
        help="the text to continue, in chat the first message; - reads standard input",
    )
    add(
        *("-z", "--tokenizer"),
        type=flag_value,
        metavar="FILE",
        help="tokenizer.bin or a sentencepiece tokenizer.model (default: tokenizer.bin in the "
        "current folder, else beside the model)",
    )
    add(
        *("-m", "--mode"),
        type=flag_value,
        choices=("generate", "chat"),
        help="default generate",
    )
    add(
        *("-y", "--system"),
        type=flag_value,
        metavar="TEXT",
        help="chat: the system prompt; asked for if not given",
    )
    add("--threads", type=number(int, 1, None), metavar="N", help="default: the processors")
    add("--version", action="version", version=f"llama2np {__version__}")
    options = parser.parse_args(list(joined(argv, parser)))
    if options.prompt == "-":
        options.prompt = sys.stdin.buffer.read().decode().removesuffix("\n")
    for flag in ("prompt", "system"):
        _check_utf8(getattr(options, flag) or "", f"--{flag}")
    return options


def _check_utf8(text: str, flag: str) -> None:
    """Refuse arguments that were not UTF-8: Python hands their bytes over as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) & 0xFF
        raise ValueError(
            f"{flag}: expected UTF-8, found byte 0x{byte:02x} at character {error.start}"
        ) from None
