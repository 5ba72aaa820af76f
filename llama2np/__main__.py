"""The command `llama2np`, which is also `python -m llama2np`."""

import atexit
import gc
import signal
import sys


def main() -> int:
    """Run the command. Until it takes over, Ctrl-C ends the process without a traceback.

    Python looks for garbage seldom, and not at the end: most objects are modules and kernels, which
    live as long as the process. That saves a tenth of the time of a short run.
    """
    gc.set_threshold(50_000)
    atexit.register(gc.freeze)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from llama2np import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
