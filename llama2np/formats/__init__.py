"""Checkpoints of other programs → a Config and named tensors → .bin, or a Hugging Face folder.

source.py        what every reader gives: Config, and tensors read a block at a time
llama2c.py       llama2.c's .pt and .bin
meta.py          params.json and consolidated.*.pth
huggingface.py   config.json and safetensors or pytorch_model.bin
torch_zip.py     the archives that torch.save writes
pickle_data.py   the pickle in such an archive, read as data
safetensors.py   that format, read and written
q80.py           the int8 quantization
write.py         the writers

torch is not needed, no code from a file is executed, and memory holds a few blocks of one tensor.
"""
