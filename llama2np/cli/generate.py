"""The command `generate`: the answers to a file of prompts, many at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llama2np.bulk.prompts import Prompt
from llama2np.bulk.tasks import answer_of, request_of
from llama2np.cli import bulk, sampling
from llama2np.cli.flags import Parser, flag_value, guarded, joined, number, path_value
from llama2np.cli.model import add_model, load_model
from llama2np.decoding.batch import Batch, complete
from llama2np.decoding.completion import Completion
from llama2np.decoding.options import Request
from llama2np.jsonl import Answers, lines
from llama2np.llama import Llama
from llama2np.output import printable


def main(argv: Sequence[str], prog: str) -> int:
    """Write an answer for each line of a file; return the exit status, 1 if a line is bad."""
    return guarded(prog, lambda: _generate(_parse(argv, prog), prog))


def _generate(options: argparse.Namespace, prog: str) -> None:
    if bulk.shared(options):
        bulk.run(options, prog, "generate", _common(options))
        return
    paths = bulk.expanded(options.prompts)
    if len(paths) != 1 or options.chunk:
        raise ValueError("several files of prompts, and --chunk, need --workers or --dask")
    (options.prompts,) = paths
    if options.output.is_dir():
        raise ValueError(f"{options.output}: is a folder, which needs --workers or --dask")
    total = sum(1 for _ in lines(options.prompts))
    if options.output.exists() and os.path.samefile(options.prompts, options.output):
        raise ValueError(f"{options.output}: is the file of the prompts, name another output")
    model = load_model(options)
    with Answers(options.output) as answers, _progress(total) as bar:
        work = _Work(model, options, answers, lambda text: bar.write(f"{prog}: {text}"))
        for _ in work.run():
            bar.update(work.seen - bar.n)
    if work.bad:
        raise ValueError(f"{work.bad} of {total} lines have no answer: see above")


def _common(options: argparse.Namespace) -> dict[str, Any]:
    """The options for all prompts."""
    ends = {"max_new_tokens": options.max_new_tokens, "stop": options.stop}
    return {**sampling.sampling_options(options), **ends}


class _Work:
    """The prompts that have no answer yet, on their way through a batch."""

    def __init__(
        self,
        model: Llama,
        options: argparse.Namespace,
        answers: Answers,
        tell: Callable[[str], None],
    ):
        self._model, self._path, self._answers, self._tell = model, options.prompts, answers, tell
        self._common = _common(options)
        self._asked: dict[int, tuple[int, Prompt]] = {}  # {index: (line, prompt)}
        self._batch = Batch(
            model.transformer,
            model.tokenizer,
            max_sequences=options.max_sequences,
            max_positions=options.max_positions,
        )
        self.bad = self.seen = self._count = 0

    def run(self) -> Iterator[None]:
        """Write an answer for each prompt; yield after each step of the batch."""
        for each, _ in complete(self._batch, self._requests(), raising=False):
            if each.done:
                self._write(each)
            yield

    def _requests(self) -> Iterator[Request]:
        for line, data in lines(self._path):
            self.seen += 1
            try:
                prompt = Prompt.of_line(data)
                if line in self._answers.answered:
                    self._check(line, prompt.given)
                    continue
                request = request_of(self._model, prompt, self._common)
            except (ValueError, TypeError) as error:
                self._report(line, error)
                continue
            self.seen -= 1  # it counts when it is done
            self._asked[self._count] = line, prompt
            self._count += 1
            yield request

    def _check(self, line: int, prompt: Any) -> None:
        if self._answers.answered[line] != prompt:
            raise ValueError("the output has an answer to another prompt: name another output")

    def _report(self, line: int, error: Exception) -> None:
        self.bad += 1
        self._tell(printable(f"{self._path}:{line}: {error}"))

    def _write(self, each: Completion) -> None:
        self.seen += 1
        line, prompt = self._asked.pop(each.index)
        if each.error is not None:
            self._report(line, each.error)
            return
        self._answers.append(line, answer_of(prompt, each))


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A progress bar on a terminal; elsewhere its `write` alone has an effect."""
    from tqdm import tqdm

    hidden = not sys.stderr.isatty()
    with tqdm(total=total, unit=" prompts", disable=hidden, file=sys.stderr) as bar:
        bar.write = lambda text: tqdm.write(text, file=sys.stderr)
        yield bar


def _parse(argv: Sequence[str], prog: str) -> argparse.Namespace:
    parser = Parser(
        prog=prog,
        description="Continue each prompt of a file, many at once. If the command is run again "
        "after it was interrupted, it goes on with the prompts that have no answer yet.",
        allow_abbrev=False,
    )
    add_model(parser)
    add = parser.add_argument
    add(
        "--prompts",
        type=flag_value,
        action="append",
        required=True,
        metavar="FILE",
        help="JSON lines: a text, or an object with prompt (a text or tokens) or messages, and "
        "perhaps an id and options of its own, such as seed, temperature, max_new_tokens, stop; "
        "with --workers or --dask also a pattern in quotes ('parts/*.jsonl'), and repeated",
    )
    add(
        "--output",
        type=path_value,
        required=True,
        metavar="FILE",
        help="where a line is appended for each answer, in the order in which they are ready; with "
        "--workers or --dask a folder, for a file of answers to each chunk of prompts",
    )
    sampling.add_flags(add)
    sampling.add_ends(add, "tokens to generate for each prompt (default: to the context's end)")
    add_batch_flags(parser)
    bulk.add_flags(parser)
    return parser.parse_args(list(joined(argv, parser)))


def add_batch_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that limit a batch."""
    parser.add_argument(
        "--max-sequences",
        type=number(int, 1, None),
        default=32,
        metavar="N",
        help="texts that are generated at the same time (default 32)",
    )
    parser.add_argument(
        "--max-positions",
        type=number(int, 1, None),
        metavar="N",
        help="memory for their KV caches, in tokens (default: one context each, at most 4 GiB)",
    )
