"""A teller of short stories for three-year-olds: the corpus of the model in the box.

The stories themselves are in texts/*.txt; `grammar` explains how those pages are read.
"""
