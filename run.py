#!/usr/bin/env python3
"""Run a model: a llama2.c checkpoint, a GGUF file or a Hugging Face folder.

./run.py stories15M.bin                                     tell a story
./run.py stories42M.bin -t 0.8 -n 256 -i "One day, Lily"    continue a text
./run.py llama2_7b_chat.bin -m chat                         talk
./run.py --help                                             all flags
"""

import os.path
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # `python -P` leaves it out
import bootstrap  # noqa: E402

if __name__ == "__main__":
    bootstrap.use_venv()
    from llama2np.cli import start

    sys.exit(start("run", sys.argv[1:], prog="run.py"))
