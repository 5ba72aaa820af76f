"""Many prompts: files of them on one machine or, with Dask (extra `dask`), on many.

| module | contents |
|---|---|
| prompts.py | a prompt of a line: its fields, its id, its seed |
| tasks.py | generate, embed, perplexity, classify: a model that answers a list of prompts |
| opened.py | the open models of a process, their fingerprints, the answers to a chunk |
| files.py, folder.py, run.py | chunks of prompt files; the folder of answers; what is to be done |
| cluster.py, worker.py | a bounded number of chunks on Dask's workers; what the workers do |
| mapping.py | `map`: the same for prompts in Python, and for a Dask bag |
"""

from llama2np.bulk.mapping import map

__all__ = ["map"]
