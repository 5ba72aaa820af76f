"""Reports of measurements: a table in Markdown, JSON, and CSV."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

from llama2np.bench.machine import description
from llama2np.bench.measure import MachineResult, PeerResult, Report, Result, Series
from llama2np.model.transformer import Transformer
from llama2np.model.weights import Int8, Matrix
from llama2np.store.names import located


def about(path: str | os.PathLike[str], transformer: Transformer) -> dict[str, object]:
    """The description of the model and the machine, for all formats but CSV."""
    weights = transformer.weights
    own = {id(tensor): tensor for tensor in weights.values()}  # a tied classifier counts once
    file = Path(located(path))
    return {
        "model": os.path.basename(path),
        "format": " and ".join(sorted({_format(m) for m in weights.matrices.values()})),
        "parameters": sum(math.prod(tensor.shape) for tensor in own.values()),
        "bytes": file.stat().st_size if file.is_file() else weights.nbytes,
        "config": asdict(transformer.config),
        "machine": description(),
    }


def _format(matrix: Matrix) -> str:
    return f"Q8_0, group size {matrix.group}" if isinstance(matrix, Int8) else matrix.kind


def as_json(report: Report, about: dict[str, object]) -> str:
    """All measurements: tokens, bytes and operations per second in each repeat."""
    return json.dumps({**about, **_plain(report)}, indent=2)


def _plain(report: Report) -> dict[str, object]:
    return {
        "results": [
            {
                **{"test": result.task.name, **asdict(result.task), "threads": result.threads},
                **_series("tokens_per_second", result.rate),
                "share_of": _LIMITS[result.task.kind],
                **_series("share", result.share),
            }
            for result in report.results
        ],
        "peers": [
            {
                **{"command": peer.command, "threads": peer.threads},
                **_series("tokens_per_second", peer.rate),
                **_series("ratio", peer.ratio),
            }
            for peer in report.peers
        ],
        "machine_speed": [
            {
                "threads": machine.threads,
                **_series("bytes_read_per_second", machine.read),
                **_series("sgemm_flops", machine.sgemm),
            }
            for machine in report.machines
        ],
    }


_LIMITS = {"generate": "read speed", "prompt": "sgemm"}


def _series(name: str, series: Series) -> dict[str, object]:
    return {name: series.median, f"{name}_spread": series.spread, f"{name}_each": series.values}


def as_csv(report: Report) -> str:
    """A line for each test, peer and number of threads: medians and standard deviations.

    share: relative to the read speed or to sgemm; ratio: our speed relative to the peer's.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = "name,depth,threads,tokens_per_second,spread,share,ratio"
    writer.writerow(columns.split(","))
    for result in report.results:
        rate, share = result.rate, result.share.median
        numbers = f"{rate.median:.4g}", f"{rate.spread:.4g}", f"{share:.4f}", ""
        writer.writerow([result.task.name, result.task.depth, result.threads, *numbers])
    for peer in report.peers:
        rate, ratio = peer.rate, peer.ratio.median
        numbers = f"{rate.median:.4g}", f"{rate.spread:.4g}", "", f"{ratio:.4f}"
        writer.writerow([peer.command, "", peer.threads, *numbers])
    return text.getvalue()


def as_table(report: Report, about: dict[str, object]) -> str:
    """Two lines about the model and the machine, then aligned tables in Markdown."""
    machine = description()
    lines = [
        f"{about['model']}: {about['parameters']:,} parameters, {about['format']}",
        f"{machine['processor']}, {machine['processors']} processors, {machine['system']}; "
        f"llama2np {machine['llama2np']}, numba {machine['numba']}, numpy {machine['numpy']}",
        "",
    ]
    head = ("test", "depth", "threads", "tok/s", "±", "share of the machine's")
    speeds = {speed.threads: speed for speed in report.machines}
    rows = [_row(result, speeds[result.threads]) for result in report.results]
    lines += aligned(head, rows, left=(0, 5))
    if report.peers:
        others = ("peer", "threads", "tok/s", "±", "llama2np / peer")
        lines += ["", *aligned(others, [_peer_row(peer) for peer in report.peers])]
    return "\n".join(lines + _notes(report, str(about["format"])))


def _notes(report: Report, format: str) -> list[str]:
    """Explanations of a share above 100 %."""
    kinds = {result.task.kind for result in report.results}
    notes = []
    if "prompt" in kinds and format != "float32":
        notes.append("Prompts are computed in int8, sgemm in float32: the share may exceed 100%.")
    if any(r.share.median > 1 for r in report.results if r.task.kind == "generate"):
        notes.append("A share of more than 100%: the model stays in the processor's caches.")
    return ["", *notes] if notes else []


def _row(result: Result, machine: MachineResult) -> Sequence[str]:
    task, rate, share = result.task, result.rate, result.share.median
    limit = f"{machine.read.median / 1e9:.1f} GB/s read"
    if task.kind == "prompt":
        limit = f"{machine.sgemm.median / 1e9:.0f} GFLOP/s, sgemm"
    speed = f"{rate.median:.1f}", f"{rate.spread:.1f}"
    return task.name, str(task.depth), str(result.threads), *speed, f"{share:.0%} of {limit}"


def _peer_row(peer: PeerResult) -> Sequence[str]:
    rate = f"{peer.rate.median:.1f}", f"{peer.rate.spread:.1f}"
    return peer.command, str(peer.threads), *rate, f"{peer.ratio.median:.2f}"


def aligned(
    head: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[int] = (0,)
) -> list[str]:
    """The lines of a table in Markdown, aligned right except for the columns in `left`."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(cells)} |")
    rules = [
        "-" * width if i in left else "-" * (width - 1) + ":" for i, width in enumerate(widths)
    ]
    lines.insert(1, f"| {' | '.join(rules)} |")
    return lines
