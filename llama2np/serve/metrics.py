"""Numbers about the server's work, in the text format of Prometheus (version 0.0.4)."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

from llama2np.serve.worker import News

_BUCKETS = 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0


class Histogram:
    """Counts of values up to each of the bounds _BUCKETS, in seconds."""

    def __init__(self) -> None:
        self._counts, self._sum, self._total = [0] * len(_BUCKETS), 0.0, 0

    def add(self, seconds: float) -> None:
        """Count a value."""
        for i, bound in enumerate(_BUCKETS):
            self._counts[i] += seconds <= bound
        self._sum, self._total = self._sum + seconds, self._total + 1

    def lines(self, name: str, about: str) -> Iterator[str]:
        """The lines of the text format."""
        yield from (f"# HELP {name} {about}", f"# TYPE {name} histogram")
        for bound, count in zip(_BUCKETS, self._counts, strict=True):
            yield f'{name}_bucket{{le="{bound}"}} {count}'
        yield f'{name}_bucket{{le="+Inf"}} {self._total}'
        yield from (f"{name}_sum {self._sum:.6f}", f"{name}_count {self._total}")


class Metrics:
    """All numbers since the server was started."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._tokens: Counter[str] = Counter()
        self._ends: Counter[str] = Counter()
        self._first, self._all = Histogram(), Histogram()

    def answered(self, path: str, status: int) -> None:
        """Count an HTTP request to a path of the server."""
        with self._lock:
            self._requests[path, status] += 1

    def count(self, news: News) -> None:
        """Count what a step has added to a sequence."""
        each = news.completion
        with self._lock:
            if news.first:
                self._first.add(news.seconds)
            if news.done:
                self._all.add(news.seconds)
                self._tokens["prompt"] += len(each.prompt)
                self._tokens["reused"] += each.reused
                self._tokens["generated"] += news.count
                self._ends[each.stop_reason or "error"] += 1

    def text(self, gauges: dict[str, tuple[str, int]]) -> str:
        """The page. gauges: {name: (what it is, value)}, numbers of this moment."""
        with self._lock:
            lines = [
                "# HELP llama2np_requests_total HTTP requests.",
                "# TYPE llama2np_requests_total counter",
            ]
            for (path, status), count in sorted(self._requests.items()):
                lines.append(f'llama2np_requests_total{{path="{path}",status="{status}"}} {count}')
            lines += _counter("tokens", "Tokens of finished texts.", "kind", self._tokens)
            lines += _counter("texts", "Finished texts.", "stop_reason", self._ends)
            lines += self._first.lines("llama2np_first_token_seconds", "Until the first token.")
            lines += self._all.lines("llama2np_text_seconds", "Until the end of a text.")
        for name, (about, value) in gauges.items():
            lines += [f"# HELP llama2np_{name} {about}", f"# TYPE llama2np_{name} gauge"]
            lines.append(f"llama2np_{name} {value}")
        return "\n".join(lines) + "\n"


def _counter(name: str, about: str, label: str, counts: Counter[str]) -> list[str]:
    name = f"llama2np_{name}_total"
    rows = [f'{name}{{{label}="{key}"}} {count}' for key, count in sorted(counts.items())]
    return [f"# HELP {name} {about}", f"# TYPE {name} counter", *rows]
