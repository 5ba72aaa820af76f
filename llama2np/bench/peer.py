"""Another program, run to its end, which prints its speed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from dataclasses import dataclass

LLAMA2C = r"achieved tok/s: ([0-9.]+)"  # run.c's output


@dataclass(frozen=True, slots=True)
class Peer:
    """A command, and a pattern for its output, whose group 1 is the tokens per second.

    {model} and {threads} in the command are replaced; OMP_NUM_THREADS is also set to the number of
    threads. Raises ValueError for a command or a pattern that cannot be used.
    """

    command: str
    model: str = ""
    pattern: str = LLAMA2C

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise ValueError(f"the pattern {self.pattern!r}: {error}") from None
        if not groups:
            raise ValueError(f"the pattern {self.pattern!r} needs a group (...) for the number")
        if not self._words(1):
            raise ValueError("the command of a peer is empty")

    def rate(self, threads: int) -> float:
        """Run it; return the last rate in its output. Raises ValueError if there is none."""
        try:
            done = subprocess.run(
                self._words(threads),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise ValueError(f"peer {self.command!r} did not start: {error.strerror}") from None
        said = done.stdout.strip()
        if done.returncode:
            raise ValueError(f"peer {self.command!r}: exit status {done.returncode}: {said[-200:]}")
        found = [match[1] for match in re.finditer(self.pattern, done.stdout)]
        try:
            rate = float(found[-1])
        except (IndexError, ValueError, TypeError):
            raise ValueError(
                f"peer {self.command!r}: expected a number as in {self.pattern!r}, "
                f"found {said[-200:]!r}"
            ) from None
        if not rate > 0:
            raise ValueError(f"peer {self.command!r}: its rate is {rate}, expected more than 0")
        return rate

    def _words(self, threads: int) -> list[str]:
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise ValueError(f"peer {self.command!r}: {error}") from None
        fill = {"{model}": self.model, "{threads}": str(threads)}
        for name, value in fill.items():
            words = [word.replace(name, value) for word in words]
        return words
