"""`python -m llama2np` is the command `llama2np`."""

import sys

from llama2np.cli import main

if __name__ == "__main__":
    sys.exit(main())
