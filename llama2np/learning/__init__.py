"""Learning: the list of steps run backwards, and what trains, adapts and classifies with it.

batch.py      padded sequences, and the rows whose predictions count
ops.py        each op with its backward; attention.py, experts.py: the two large ones
passes.py     a pass over the list of steps: forward, then backward
loss.py       cross entropy of the logits, a part of the rows at a time
gradients.py  loss_and_gradients

This package has NumPy only: matrix products are BLAS's, over all tokens of a batch at once.
"""
