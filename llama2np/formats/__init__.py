"""Model files of all formats → a Config and named tensors → a network that runs, or other files.

loading.py       the network and the tokenizer at a path, of any format
checkpoint.py    .bin files, mapped
source.py        what every other reader gives: Config, and tensors read a block at a time
llama2c.py       llama2.c's .pt and .bin
meta.py          params.json and consolidated.*.pth
huggingface/     config.json and safetensors or pytorch_model.bin
gguf/            GGUF files, read and written
torch_zip.py     the archives that torch.save writes
pickle_data.py   the pickle in such an archive, read as data
safetensors.py   safetensors files, read and written
peft.py          LoRA adapters
q80.py           the int8 quantization
export.py        from any of these to any that can be written; write.py has the writers

torch is not needed, and no code from a file is executed. An export has a few blocks of one tensor
in memory.
"""
