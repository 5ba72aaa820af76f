"""The ops: the compiled functions that compute the steps of a program."""
