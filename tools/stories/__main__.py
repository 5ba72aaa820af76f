"""Read stories aloud: python -m tools.stories [COUNT] [--from N] [--plot NAME]."""

from __future__ import annotations

import argparse

from tools.stories.teller import tell


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=5)
    parser.add_argument("--from", type=int, default=0, dest="first")
    parser.add_argument("--plot")
    options = parser.parse_args()
    for number in range(options.first, options.first + options.count):
        story = tell(number, plot=options.plot)
        print(f"[{number}: {story.plot}, {story.nats:.0f} nats]\n{story.text}\n")


if __name__ == "__main__":
    main()
