"""The command `run`: the library with run.c's flags."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence

from llama2np import __version__, advice, box
from llama2np.cli import engine, sampling
from llama2np.cli.chat import check_can_chat, converse
from llama2np.cli.flags import (
    Parser,
    check_utf8,
    choice,
    flag_value,
    joined,
    number,
    piped,
    text_value,
)
from llama2np.cli.model import MODEL_HELP, TOKENIZER_HELP
from llama2np.cli.screen import Screen, in_a_terminal
from llama2np.decoding.generation import Generation
from llama2np.decoding.turns import turns_for
from llama2np.formats import kinds
from llama2np.formats.checkpoint import CheckpointError, read_header
from llama2np.llama import Llama

_STEPS = 256  # run.c's


def main(argv: Sequence[str], prog: str, int8_only: bool = False) -> int:
    """Generate or chat, as llama2.c's `run` does; return the exit status.

    int8_only: as its `runq` does, which accepts only int8 checkpoints.
    """

    return in_a_terminal(prog, lambda screen: _run(argv, prog, int8_only, screen))


def _run(argv: Sequence[str], prog: str, int8_only: bool, screen: Screen) -> None:
    options = _parse(argv, prog, box.STORIES_INT8 if int8_only else box.STORIES)
    engine.set_up(options, screen.note)
    if int8_only:
        _check_int8(options.model)
    model = engine.load(options)
    if options.mode == "chat":
        turns_for(model.tokenizer, None)  # before anything is asked: ValueError if it cannot chat
        (_chat_as_run_c if model.tokenizer.chat_template is None else _chat)(model, options, screen)
    else:
        _generate(model, options, screen)


def _check_int8(path: str) -> None:
    with kinds.named(path, "int8", CheckpointError):
        version = read_header(path).version
    if version != 2:
        raise ValueError(
            f"{path}: version {version}, float32; expected version 2, int8: run it with "
            f"`{advice.command('run')} {shlex.quote(path)}`, or quantize it: "
            f"`{advice.command('export')} out.bin --bin {shlex.quote(path)} --version 2`"
        )


def _generate(model: Llama, options: argparse.Namespace, screen: Screen) -> None:
    """Print the prompt, decoded from its tokens, then the generated text, then the speed."""
    tokens = model.prompt_tokens(options.prompt or "")
    context, most = model.config.seq_len, options.max_new_tokens
    steps = options.steps  # a number of positions, those of the prompt included
    if steps is None:
        steps = _STEPS if most is None else 0
    steps = min(steps or context, context)
    room = max(steps - len(tokens) + 1, 0)
    story = model.generate(
        tokens,
        max_new_tokens=room if most is None else min(most, room),
        stop=options.stop or (),
        logprobs=options.logprobs,
        **sampling.sampling_options(options),
    )
    screen.write(model.tokenizer.decode(tokens[: steps + 1], skip_special=True))
    # The time is measured after the tokens that wait for the disk and for loading kernels: the
    # first loads those for a prompt, the second those for one token.
    warm, count, start = 1 if len(tokens) == 1 else 2, 0, 0.0
    for piece in story:
        screen.write(piece)
        count += 1
        if count == warm:
            start = time.perf_counter()
    elapsed = time.perf_counter() - start
    screen.write("\n")
    if count > warm:
        print(f"achieved tok/s: {(count - warm) / elapsed:f}", file=sys.stderr)
    if options.logprobs is not None:
        _tell_logprobs(model, story)


def _tell_logprobs(model: Llama, story: Generation) -> None:
    """Print a line for each token, with the log-probabilities of it and of the top tokens."""

    def named(token: int, logprob: float) -> str:
        return f"{token} {model.tokenizer.pieces[token].decode(errors='replace')!r} {logprob:.4f}"

    for token, logprob, top in zip(story.tokens, story.logprobs, story.top_logprobs, strict=True):
        cells = [named(token, logprob), *(named(*item) for item in top.items())]
        print("\t".join(cells), file=sys.stderr)


def _chat(model: Llama, options: argparse.Namespace, screen: Screen) -> None:
    """Talk in the model's own template, as the command `chat` does."""
    options_of_sampling = sampling.chat_options(options)
    chat = model.chat(options.system, positions=options.steps, **options_of_sampling)
    converse(chat, screen, options.prompt)


def _chat_as_run_c(model: Llama, options: argparse.Namespace, screen: Screen) -> None:
    """Talk in Llama 2's template, until the input or the context ends."""
    try:
        system = options.system
        if system is None:
            system = screen.ask("Enter system prompt (optional): ")
        chat = model.chat(
            system,
            positions=_STEPS if options.steps is None else options.steps,
            **sampling.sampling_options(options),
        )
        text = options.prompt
        while not chat.full:
            answer = chat.send(screen.ask("User: ") if text is None else text)
            screen.write("Assistant: ")
            try:
                for piece in answer:
                    screen.write(piece)
            except KeyboardInterrupt:
                pass  # ends only this answer; while a question waits it ends the program
            screen.write("\n")
            text = None
        screen.note(
            f"the context of {chat.positions} positions (-n) is full, the chat ends here; "
            f"the model's own context has {model.config.seq_len} (-n 0)"
        )
    except EOFError:
        return


def _parse(argv: Sequence[str], prog: str, default: str) -> argparse.Namespace:
    parser = Parser(
        prog=prog,
        description="Run a model with run.c's flags: continue a text, or chat.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", nargs="?", default=default, help=f"{MODEL_HELP} (default {default})")
    sampling.add_flags(add)
    add(
        *("-n", "--steps"),
        type=number(int, 0, None),
        metavar="N",
        help="positions to fill, the prompt included; 0 is the model's context "
        f"(default {_STEPS}; with --max-new-tokens 0)",
    )
    sampling.add_ends(add, "tokens to generate, the prompt not included")
    add(
        "--logprobs",
        type=number(int, 0, None),
        metavar="N",
        help="at the end, print to standard error each token's log-probability and the N most "
        "probable tokens at its position",
    )
    add(
        *("-i", "--prompt"),
        type=text_value,
        metavar="TEXT",
        help="the text to continue, or in chat the first message; - reads standard input",
    )
    add(
        *("-z", "--tokenizer"),
        type=flag_value,
        metavar="FILE",
        help=TOKENIZER_HELP,
    )
    add(
        *("-m", "--mode"),
        type=choice("generate", "chat"),
        metavar="MODE",
        help="generate (default) or chat",
    )
    add(
        *("-y", "--system"),
        type=text_value,
        metavar="TEXT",
        help="in chat: the system prompt; without this flag the program asks for it",
    )
    engine.add_flags(parser)
    add("--version", action="version", version=f"llama2np {__version__}")
    options = parser.parse_args(list(joined(argv, parser)))
    if options.mode == "chat":
        check_can_chat(options.model, prog)
        for flag in ("max_new_tokens", "stop", "logprobs"):
            if getattr(options, flag) is not None:
                flag = flag.replace("_", "-")
                raise ValueError(f"--{flag} can be used with -m generate only, not with chat")
    if options.prompt == "-":
        options.prompt = piped()
    for flag in ("prompt", "system", "stop"):
        check_utf8("".join(getattr(options, flag) or ""), f"--{flag}")
    return options
