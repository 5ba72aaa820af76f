"""A generator of short stories for three-year-olds: the training corpus of the bundled model.

The stories themselves are in texts/*.txt; `grammar` explains how those pages are read.
"""
