"""The command `list`: the models that were pulled, and those that have a short name."""

from __future__ import annotations

from collections.abc import Sequence

from llama2np import advice
from llama2np.cli.flags import Parser, guarded, joined
from llama2np.output import printable
from llama2np.store.catalogue import CATALOGUE
from llama2np.store.names import pulled


def main(argv: Sequence[str], prog: str) -> int:
    """Print a table of models; return the exit status."""
    return guarded(prog, lambda: _list(argv, prog))


def _list(argv: Sequence[str], prog: str) -> None:
    description = "List the models that were pulled: name, size, licence and path."
    parser = Parser(prog=prog, description=description, allow_abbrev=False)
    parser.parse_args(list(joined(argv, parser)))
    models = pulled()
    rows = [(m.name, _megabytes(m.size), m.licence, str(m.path)) for m in models]
    here = {model.name for model in models}
    for name, known in CATALOGUE.items():
        if name not in here:
            size = _megabytes(sum(item.size for item in known.items))
            rows.append(
                (name, size, known.licence, f"not here: {advice.installed(f'pull {name}')}")
            )
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for name, size, licence, path in rows:
        name, licence = f"{name:{widths[0]}}", f"{licence:{widths[2]}}"
        print(printable(f"{name}  {size:>{widths[1]}}  {licence}  {path}"))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
