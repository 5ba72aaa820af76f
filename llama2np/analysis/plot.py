"""Pictures of a network's arrays. They need matplotlib: pip install "llama2np[plot]"."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from llama2np.arguments import none_means_default, whole
from llama2np.atomic import replacing

if TYPE_CHECKING:
    from llama2np.bench.measure import Result

Label = str | tuple[str, int]
FORMATS = (".png", ".svg", ".pdf")
_COLOURS = "Blues"  # white is 0, dark is 1
_DPI = 180  # of a .png
_EDGE = "0.6"  # the grey of the line around the possible half of a map
_FEW_MAPS, _FEW_TOKENS = 4, 64  # tokens are printed beside the maps up to these numbers


@none_means_default
def attention_maps(
    maps: Sequence[np.ndarray],
    labels: Sequence[Label],
    titles: Sequence[str],
    columns: int | None = 4,
    figure: Figure | None = None,
) -> Figure:
    """Draw attention maps (T, T), `columns` of them side by side. A row is what a token attends to.

    labels: of the T tokens, each a text, or a text and the number of tokens that it stands for, as
    `lens.spans` has them; titles: one for each map; figure: an empty one, such as pyplot's. The
    half of a map that is 0 by definition, later tokens, stays blank.
    """
    columns = min(len(maps), whole("columns", columns, 1))
    rows, few = -(-len(maps) // columns), len(maps) <= _FEW_MAPS
    texts, places = _ticks(labels)
    count = maps[0].shape[-1]
    labelled = few and count <= _FEW_TOKENS
    side = 1.4 + 0.22 * count if labelled else 5 if few else 1.6
    figure = Figure() if figure is None else figure
    figure.set_size_inches(columns * side, rows * side)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(maps) :]:
        axis.remove()
    for axis, weights, title in zip(axes, maps, titles, strict=False):
        _draw_map(axis, weights)
        axis.set_title(title, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
        if labelled:
            axis.set_xticks(places, texts, rotation=90, fontsize=8)
            axis.set_yticks(places, texts, fontsize=8)
        if few:
            axis.set_xlabel("token that is looked at", fontsize=8)
            axis.set_ylabel("token that looks", fontsize=8)
    if not few:
        figure.supxlabel("token that is looked at", fontsize=8)
        figure.supylabel("token that looks", fontsize=8)
    _as_written(figure)
    return figure


def _draw_map(axis: Axes, weights: np.ndarray) -> None:
    """Draw an attention map (T, T): the half up to the diagonal, with a line around it."""
    count = len(weights)
    possible = np.tri(count, dtype=bool)
    axis.imshow(np.ma.masked_where(~possible, weights), cmap=_COLOURS, vmin=0, vmax=1)
    axis.spines[:].set_visible(False)
    steps = np.repeat(np.arange(count + 1) - 0.5, 2)
    x, y = [*steps[1:], -0.5, -0.5], [*steps[:-1], count - 0.5, -0.5]
    axis.plot(x, y, color=_EDGE, linewidth=0.6, clip_on=False)


def _ticks(labels: Sequence[Label]) -> tuple[list[str], list[float]]:
    """The texts of labels, and where they stand: in the middle of their tokens."""
    pairs = [(label, 1) if isinstance(label, str) else label for label in labels]
    counts = np.array([count for _, count in pairs])
    return [text for text, _ in pairs], (counts.cumsum() - (counts + 1) / 2).tolist()


def lens_table(
    pieces: Sequence[Sequence[str]],
    probabilities: np.ndarray,
    rows: Sequence[str],
    labels: Sequence[Label],
) -> Figure:
    """Draw a logit lens: the most probable piece after each block, darker for a higher probability.

    pieces: rows of columns; probabilities: (rows, columns); the last row is drawn at the top.
    labels: of the columns, as `attention_maps` has them.
    """
    height, width = probabilities.shape
    figure = Figure((1 + 0.62 * width, 0.7 + 0.3 * height), layout="constrained")
    axis = figure.subplots()
    axis.imshow(probabilities, cmap=_COLOURS, vmin=0, vmax=1, aspect="auto", origin="lower")
    for y, x in np.ndindex(height, width):
        colour = "white" if probabilities[y, x] > 0.6 else "black"
        axis.text(x, y, pieces[y][x], ha="center", va="center", fontsize=8, color=colour)
    axis.set_yticks(range(height), rows, fontsize=8)
    texts, places = _ticks(labels)
    axis.set_xticks(places, texts, fontsize=8)
    axis.set_xlabel("token that was read; in the cells: the most probable next one", fontsize=8)
    axis.set_ylabel("if the network ended after", fontsize=8)
    _as_written(axis)
    return figure


def _as_written(part: Artist) -> None:
    """Draw all texts in this part of a figure literally: "$" and "\\" do not begin a formula."""
    for text in part.findobj(Text):
        text.set_parse_math(False)
        text.set_usetex(False)


def checked(path: str | os.PathLike[str], others: Sequence[str] = ()) -> Path:
    """The path, if its suffix is a known format. Raises ValueError, which names `others`, too."""
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        formats = ", ".join([*others, *FORMATS])
        raise ValueError(f"{path}: the name of a picture must end in {formats}")
    return path


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a picture in the format of the path's suffix. Raises ValueError and OSError."""
    path = checked(path)
    kind = path.suffix.lower()[1:]
    stamp = {"png": "Software", "svg": "Date", "pdf": "CreationDate"}[kind]
    with replacing(path) as file, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # matplotlib draws a box instead
        # No time and no version, so that the same picture gives the same file.
        figure.savefig(file, format=kind, dpi=_DPI, metadata={stamp: None})


def speeds(results: Sequence[Result]) -> Figure:
    """Draw tokens per second against the depth of the context, a line for each thread count.

    results: those of bench.measure.measure. Prompts and generation are drawn side by side.
    """
    kinds = sorted({result.task.kind for result in results}, reverse=True)
    figure = Figure((4.5 * len(kinds), 3.5), layout="constrained")
    axes = figure.subplots(1, len(kinds), squeeze=False).ravel()
    for axis, kind in zip(axes, kinds, strict=True):
        here = [result for result in results if result.task.kind == kind]
        for threads in sorted({result.threads for result in here}):
            line = [result for result in here if result.threads == threads]
            axis.errorbar(
                [result.task.depth for result in line],
                [result.rate.median for result in line],
                [result.rate.spread for result in line],
                marker="o",
                capsize=3,
                label=f"{threads} thread{'s' if threads > 1 else ''}",
            )
        axis.set_title(f"{'prompt' if kind == 'prompt' else 'generation'}, {here[0].task.name}")
        axis.set_xlabel("tokens before it")
        axis.set_ylabel("tokens per second")
        axis.set_ylim(bottom=0)
        axis.legend()
    return figure


_STEPS = 1000  # more are drawn as the means of neighbours


def losses(found: Sequence[float]) -> Figure:
    """Draw the loss of each step of a training, and the mean of the steps around it."""
    values = np.asarray(found, float)
    width = max(len(values) // 50, 1)
    window = np.ones(width)
    counts = np.convolve(np.ones(len(values)), window, "same")[: len(values)]
    means = np.convolve(values, window, "same")[: len(values)] / counts
    apart = -(-len(values) // _STEPS)
    firsts = np.arange(0, len(values), apart)
    each = np.add.reduceat(values, firsts) / np.diff([*firsts, len(values)])
    figure = Figure((6, 3.5), layout="constrained")
    axis = figure.subplots()
    axis.plot(firsts + (apart + 1) / 2, each, linewidth=0.8, alpha=0.4, label="a step")
    axis.plot(np.arange(1, len(values) + 1), means, label=f"mean of {width}")
    axis.set_xlabel("step")
    axis.set_ylabel("loss, nats per target")
    axis.legend()
    return figure
