"""The command `warmup`: compile the kernels before their first use."""

from __future__ import annotations

from collections.abc import Sequence

from llama2np.cli.flags import Parser, guarded, joined
from llama2np.warmup import warm_up


def main(argv: Sequence[str], prog: str) -> int:
    """Compile and cache all kernels, and print how many; return the exit status."""
    return guarded(prog, lambda: _warmup(argv, prog))


def _warmup(argv: Sequence[str], prog: str) -> None:
    description = (
        "Compile all kernels in advance, for container images and CI. They are kept in the folder "
        "that NUMBA_CACHE_DIR names."
    )
    parser = Parser(prog=prog, description=description, allow_abbrev=False)
    parser.parse_args(list(joined(argv, parser)))
    report = warm_up()
    print(
        f"{report.compiled} kernels compiled in {report.seconds:.1f} s, "
        f"{report.kept} kept in {report.folder}"
    )
