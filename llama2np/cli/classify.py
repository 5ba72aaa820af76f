"""The command `classify`: a label for each text, by a trained classifier or by any model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from llama2np.analysis.metrics import Report
from llama2np.analysis.zero_shot import PROMPT, zero_shot
from llama2np.atomic import replacing
from llama2np.classifier import Classifier
from llama2np.cli import bulk, engine, learning
from llama2np.cli.flags import Parser, guarded, joined, path_value, text_value
from llama2np.cli.model import add_model
from llama2np.formats import loading
from llama2np.jsonl import encoded
from llama2np.learning.examples import Examples
from llama2np.llama import Llama

_PART = 256  # texts that are in memory at a time
Scoring = Callable[[Sequence[str], Callable[[int], object]], np.ndarray]


def main(argv: Sequence[str], prog: str) -> int:
    """Choose a label for each text; return the exit status."""
    return guarded(prog, lambda: _classify(_parse(argv, prog), prog))


def _classify(options: argparse.Namespace, prog: str) -> None:
    if bulk.asked(options, options.data, "--data", "--out" if options.out else ""):
        bulk.run(options, prog, "classify", _of_task(options))
        return
    engine.set_up(options, lambda note: print(note, file=sys.stderr, flush=True))
    scores, labels = _scoring(options)
    examples = Examples.read(options.data, labels)
    predicted = np.empty(len(examples), np.int32)
    with _output(options.out) as write, learning.progress(len(examples), " texts") as told:
        texts, start = iter(examples.texts), 0
        while some := list(islice(texts, _PART)):
            part = slice(start, start + len(some))
            rows = scores(some, told)
            predicted[part] = rows.argmax(-1)
            write(_lines(some, examples.labels[part], predicted[part], rows, labels))
            start = part.stop
    for line in Report.of(predicted, examples.labels, labels).lines():
        print(line)


def _scoring(options: argparse.Namespace) -> tuple[Scoring, tuple[str, ...]]:
    """What gives scores to texts, and the names of the labels."""
    labels = tuple(options.labels.split(",")) if options.labels else ()
    trained = bool(loading.load(options.model).config.n_labels)
    if trained == bool(labels):
        raise ValueError(
            f"{options.model}: has labels of its own: use it without --labels"
            if trained
            else "--labels A,B is needed: this model has no labels of its own"
        )
    how = options.model, options.tokenizer, options.engine
    if trained:
        classifier = Classifier.load(*how, activations=options.activations)
        return classifier.logits, classifier.labels
    model, prompt = Llama.load(*how, activations=options.activations), options.prompt

    def scores(texts: Sequence[str], told: Callable[[int], object]) -> np.ndarray:
        return zero_shot(model, texts, labels, prompt, options.normalize, told)

    return scores, labels


@contextmanager
def _output(path: Path | None) -> Iterator[Callable[[bytes], object]]:
    """Open the file for predictions, if there is to be one; yield what writes to it."""
    if path is None:
        yield lambda _: None
        return
    with replacing(path) as file:
        yield file.write


def _of_task(options: argparse.Namespace) -> dict[str, Any]:
    labels = options.labels.split(",") if options.labels else None
    zero_shot = {"prompt": options.prompt, "normalize": options.normalize} if labels else {}
    return {"labels": labels, **zero_shot}


def _lines(
    texts: Sequence[str],
    numbers: np.ndarray,
    predicted: np.ndarray,
    scores: np.ndarray,
    labels: Sequence[str],
) -> bytes:
    """A line of JSON for each text."""
    lines = []
    for text, label, found, row in zip(texts, numbers, predicted, scores, strict=True):
        each = {"text": text, "label": labels[label], "predicted": labels[found]}
        told = {name: round(float(score), 5) for name, score in zip(labels, row, strict=True)}
        lines.append(encoded(each | {"scores": told}))
    return b"".join(lines)


def _parse(argv: Sequence[str], prog: str) -> argparse.Namespace:
    parser = Parser(
        prog=prog,
        description="Choose a label for each text, and tell how often it is the right one: by a "
        "classifier that finetune has written, or by how well a model predicts each label's name. "
        "With --prompts and --output: for many texts, whose labels are not known.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add_model(parser)
    add(
        "--data",
        type=path_value,
        metavar="FILE",
        help="lines of `label ||| sentence`, or a .csv or .jsonl with text and label",
    )
    bulk.add_prompts(parser)
    add("--labels", type=text_value, metavar="A,B", help="names of the labels 0, 1 ...")
    add(
        "--prompt",
        type=text_value,
        default=f".{PROMPT}",
        metavar="TEXT",
        help="what comes before a label, with {text} for the text",
    )
    add("--normalize", action="store_true", help="divide a label's score by its tokens")
    add("--out", type=path_value, metavar="FILE", help="write the predictions, lines of JSON")
    return parser.parse_args(list(joined(argv, parser)))
