#!/usr/bin/env python3
"""Run a llama2.c checkpoint of version 2: int8 weights, Q8_0.

./runq.py llama2_7b_q80.bin -m chat             talk
./runq.py stories110M_q80.bin -i "Once upon"    continue a text
./runq.py --help                                all flags
"""

import os.path
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # `python -P` leaves it out
import bootstrap  # noqa: E402

if __name__ == "__main__":
    bootstrap.use_venv()
    from llama2np.cli.run import main

    sys.exit(main(sys.argv[1:], prog="runq.py", int8_only=True))
