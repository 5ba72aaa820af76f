"""Models by name: download them, list them, remove them, and find them again.

catalogue.py   the models that have a short name here, and where they come from
home.py        the folder of the downloaded models, and its lock
names.py       name → path: bundled models, pulled models, and paths
pulling.py     download a model by its name
download.py    one file from a server, which can be resumed
pip_package.py one file from a package of pip's index
hub.py         models of the Hugging Face hub
"""
