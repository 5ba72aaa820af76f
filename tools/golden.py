"""Write tests/golden/box.json: the output of llama2.c's programs for the bundled models.

python -m tools.golden FOLDER      FOLDER has llama2.c's run and runq, built with gcc -O3
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

from llama2np import box
from llama2np.atomic import write_file

GOLDEN = Path(__file__).parent.parent / "tests/golden/box.json"
PROGRAMS = {box.STORIES: "run", box.STORIES_INT8: "runq"}
FLAGS = (
    ["-t", "0"],
    ["-t", "0", "-n", "64", "-i", "Once upon a time, a cat named Max"],
    ["-t", "0.8", "-s", "42"],
    ["-t", "0.8", "-s", "1"],
    ["-t", "0.8", "-s", "2", "-i", "Once upon a time, a cat named Max"],
    ["-t", "1", "-p", "1", "-s", "3", "-n", "128"],
    ["-t", "1", "-p", "0", "-s", "4", "-n", "100"],
    ["-t", "0.5", "-p", "0.5", "-s", "5"],
    ["-t", "0", "-n", "0", "-i", "Lily and Tom were"],
    ["-t", "0.8", "-p", "0.95", "-s", "123456789", "-i", "Sara wanted a red ball."],
    ["-t", "2", "-s", "6", "-n", "40"],
)


def said(program: Path, name: str, flags: list[str]) -> str:
    """The output of one of llama2.c's programs for a bundled model."""
    command = [program, box.located(name), "-z", box.TOKENIZER, *flags]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    cases = [
        {"model": name, "args": flags, "stdout": said(folder / program, name, flags)}
        for name, program in PROGRAMS.items()
        for flags in FLAGS
    ]
    write_file(GOLDEN, ("[\n" + ",\n".join(map(json.dumps, cases)) + "\n]\n").encode())


if __name__ == "__main__":
    main()
