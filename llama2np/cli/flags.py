"""What the commands share: parsing of flags, reports of errors, and signals."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, cast

from llama2np import advice
from llama2np.cli.streams import read_with_patience, standard_streams
from llama2np.cli.text import plain
from llama2np.formats.checkpoint import CheckpointWarning
from llama2np.mpi import launch
from llama2np.output import printable

INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
PIPE_CLOSED = 141  # 128 + SIGPIPE

# In bytes: about a million tokens, the size of the longest contexts. Encoding them takes 700 MB.
LONGEST_TEXT = 2**22


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ValueErrors."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (--help shows the flags)")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Replace argparse's method, which ignores errors such as a full disk."""
        print(message, end="", file=file or sys.stderr)


def joined(argv: Sequence[str], parser: argparse.ArgumentParser) -> Iterator[str]:
    """run.c's rule, which argparse lacks: the word after a flag is its value, even `-1` or `--`.

    Every value becomes --flag=.VALUE; the dot keeps argparse from interpreting it.
    """
    takes_value = {
        flag: action.option_strings[-1]
        for action in parser._actions
        if action.nargs is None
        for flag in action.option_strings
    }
    known = [flag for action in parser._actions for flag in action.option_strings]
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if word == "--":  # no flags come after it
            yield from (word, *words)
            return
        _check_flag(flag, known, parser)
        if word in takes_value and (follows := next(words, None)) is not None:
            yield f"{takes_value[word]}=.{follows}"
        elif equals and flag.startswith("--") and flag in takes_value:
            yield f"{flag}=.{value}"
        elif len(word) > 2 and word[:2] in takes_value:  # -t0.8
            yield f"{takes_value[word[:2]]}=.{word[2:]}"
        else:
            yield word


def _check_flag(word: str, known: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """Reject an unknown flag and suggest the nearest one; -t0.8 is -t and its value."""
    if len(word) < 2 or word[0] != "-" or word in known:
        return
    if word[1] != "-" and f"-{word}" in known:  # -temperature: not -t with the value emperature
        parser.error(f"unrecognized flag {word}; did you mean -{word}?")
    if word[1] == "-" or word[:2] not in known:
        parser.error(f"unrecognized flag {word}{advice.did_you_mean(word, known)}")


def flag_value(value: str) -> str:
    """The value of a flag that `joined` has rewritten."""
    return value[1:]


def text_value(value: str) -> str:
    """The value of a flag that `joined` has rewritten, as a text.

    In a locale that is not UTF-8, Python has made surrogates of its bytes; they are UTF-8 anyway.
    """
    text = flag_value(value)
    if any("\ud800" <= c < "\ue000" for c in text):
        with suppress(UnicodeError):
            return os.fsencode(text).decode()
    return text


def path_value(value: str) -> Path:
    """The value of a flag that `joined` has rewritten, as a path."""
    return Path(flag_value(value))


def piped() -> str:
    """The text of standard input, without the newline at its end.

    Raises UnicodeDecodeError, and ValueError for more than LONGEST_TEXT.
    """
    endless = launch.loses_end_of_input()
    data = (read_with_patience if endless else sys.stdin.buffer.read)(LONGEST_TEXT + 1)
    check_length(len(data))
    return "".join(plain([data.decode()])).removesuffix("\n")


def check_length(size: int) -> None:
    """Raise ValueError if the text of standard input is too long: the input may be endless."""
    if size > LONGEST_TEXT:
        raise ValueError(f"standard input: more than {LONGEST_TEXT:,} bytes, no context holds them")


def check_utf8(text: str, flag: str) -> None:
    """Reject arguments that are not UTF-8: Python passes their bytes on as surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        byte = ord(text[error.start]) & 0xFF
        raise ValueError(
            f"{flag}: expected UTF-8, found byte 0x{byte:02x} at character {error.start}"
        ) from None


def number(kind: Callable[[str], float], low: float, high: float | None) -> Callable[[str], float]:
    """A parser of numbers from `low` to `high`, for argparse."""
    noun = "a whole number" if kind is int else "a number"
    legal = f"{noun} of {low} or more" if high is None else f"{noun} from {low} to {high}"

    def parse(value: str) -> float:
        text = flag_value(value)
        found: float | None
        try:
            found = kind(text)
        except ValueError:
            found = None
        if found is None or not low <= found <= (sys.float_info.max if high is None else high):
            raise argparse.ArgumentTypeError(f"expected {legal}, found {text!r}")
        return found

    return parse


def choice(*legal: str) -> Callable[[str], str]:
    """A parser of one of these words, for argparse."""

    def parse(value: str) -> str:
        text = flag_value(value)
        if text not in legal:
            raise argparse.ArgumentTypeError(
                f"expected {' or '.join(legal)}, found {text!r}{advice.did_you_mean(text, legal)}"
            )
        return text

    return parse


def one_line(error: Exception) -> str:
    """The text of an error for a line of standard error."""
    if isinstance(error, UnicodeDecodeError):
        byte = error.object[error.start]
        return f"standard input: expected UTF-8, found byte 0x{byte:02x} at byte {error.start}"
    text = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    elif isinstance(error, FileNotFoundError) and _has_no_current_folder():
        text = "the current folder does not exist any more: cd to another one"
    if isinstance(error, MemoryError):
        text = f"not enough memory: {error}"
    return printable(" ".join(text.split()))


def _has_no_current_folder() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return True
    return False


@contextmanager
def printed_warnings(prog: str) -> Iterator[None]:
    """Print each CheckpointWarning that occurs in the block as one line on standard error."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", CheckpointWarning)
        show = warnings.showwarning

        def tell(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
            if issubclass(category, CheckpointWarning):
                print(f"{prog}: {message}", file=sys.stderr)
            else:
                show(message, category, *rest, **more)

        warnings.showwarning = cast(Any, tell)
        yield


@contextmanager
def on_interrupt(handler: Callable[..., Any]) -> Iterator[None]:
    """Let Ctrl-C call `handler` in the block, unless the parent process has it ignored.

    This has no effect outside the main thread: only the main thread can handle signals in Python.
    """
    before = signal.getsignal(signal.SIGINT)
    if before not in (signal.SIG_DFL, signal.default_int_handler) or not _has_signals():
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class Ending:
    """A signal handler that raises an exception, and ignores signals for the next second.

    So a second Ctrl-C does not interrupt the removal of an unfinished file. After that second the
    next signal raises again, since a callback of the compiler may have lost the first exception.
    """

    def __init__(self) -> None:
        self._last = -math.inf

    def __call__(self, number: int, _frame: object) -> None:
        if time.monotonic() - self._last < 1:
            return
        self._last = time.monotonic()
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _has_signals() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextmanager
def on_termination(end: Ending) -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block by an exception, unless they are ignored."""
    names = (name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))  # no SIGHUP: Windows
    numbers = [getattr(signal, name) for name in names]
    numbers = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    numbers = numbers if _has_signals() else []
    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def guarded(prog: str, command: Callable[[], None]) -> int:
    """Run a command that SIGTERM and SIGHUP end by an exception; return its exit status."""
    end = Ending()

    def terminable() -> int:
        with on_interrupt(end), on_termination(end), printed_warnings(prog):
            command()
        return 0

    return reported(prog, terminable)


def reported(prog: str, command: Callable[[], int]) -> int:
    """Run a command; return its exit status. An error becomes one line on standard error.

    Only this function flushes standard output at the end, so that a full disk is such an error for
    every command. If the reader of a pipe ends early (`| head -1`), nothing is printed.
    """
    with standard_streams():
        try:
            with on_interrupt(signal.default_int_handler):
                try:
                    status = command()
                except SystemExit:  # --help has printed
                    sys.stdout.flush()
                    raise
                sys.stdout.flush()
                return status
        except KeyboardInterrupt as stop:
            _tell(f"{prog}: {str(stop) or 'interrupted'}")
            return INTERRUPTED
        except BrokenPipeError:
            return PIPE_CLOSED
        except (ValueError, OSError, MemoryError) as error:
            _tell(f"{prog}: {one_line(error)}")
            return 1


def _tell(text: str) -> None:
    with suppress(OSError):  # if standard error fails, the exit status still reports the error
        print(text, file=sys.stderr, flush=True)
