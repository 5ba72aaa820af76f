"""What a network is: its description, weights, state and program, and the NumPy engine.

| module | contents |
|---|---|
| config.py, weights.py | numbers of a network; its tensors |
| gguf_blocks.py | matrices in GGUF's number formats |
| architectures.py, block.py, program.py | descriptions; what records their steps; all steps |
| transformer.py, state.py | the forward pass; the tokens and the KV cache of a sequence |
| engine.py | the interface of both engines |
| numpy_engine.py, attention.py, rope.py | the engine in NumPy; attention; rotary positions |
| hooks.py, listing.py | arrays between the steps; the steps as a table of text |
| networks.py, encoder.py | from a config to its programs; BERT and its heads |
| snapshot.py | the file of a State |
"""
