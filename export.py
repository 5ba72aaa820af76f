#!/usr/bin/env python3
"""Convert a model to .bin, GGUF or a Hugging Face folder, or a tokenizer; without torch.

./export.py llama2_7b.bin --meta-llama path/to/7B               Meta's
./export.py model.bin --hf path/to/folder --version 1           Hugging Face's
./export.py model.bin --checkpoint out/ckpt.pt --version 2      llama2.c's trainer's, as int8
./export.py small.bin --bin stories15M.bin --version 2          quantize a .bin
./export.py folder --bin stories15M.bin --version -1            for transformers
./export.py tokenizer.bin --tokenizer tokenizer.model           the tokenizer
"""

import os.path
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # `python -P` leaves it out
import bootstrap  # noqa: E402

if __name__ == "__main__":
    bootstrap.use_venv()
    from llama2np.cli.export import main

    sys.exit(main(sys.argv[1:], prog="export.py"))
