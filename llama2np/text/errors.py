"""The error of files that describe how text becomes tokens."""

from __future__ import annotations

from llama2np.output import printable


class TokenizerError(ValueError):
    """A tokenizer file that cannot be used. The text has the file, what was expected and found."""

    def __init__(self, text: str):
        super().__init__(printable(text))
