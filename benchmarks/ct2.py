"""CTranslate2's side of the report, in a Python that has ctranslate2, transformers and torch.

    python ct2.py convert FOLDER OUT int8|float32     a Hugging Face folder, without a tokenizer
    python ct2.py rate MODEL STEPS PROMPT THREADS

`rate` prints tokens per second as the report reads them. Its int8 has a scale for each row of a
matrix, where Q8_0 has one for each 64 values.
"""

import json
import sys
import time
from pathlib import Path


def convert(folder, out, kind):
    """Write CTranslate2's own format with the converter that comes with it."""
    from ctranslate2.converters import TransformersConverter
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    size = json.loads((Path(folder) / "config.json").read_text())["vocab_size"]
    words = {f"w{i}": i for i in range(size)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")),
        **{"unk_token": "w0", "bos_token": "w1", "eos_token": "w2"},
    )
    tokenizer.save_pretrained(folder)
    TransformersConverter(folder).convert(out, quantization=kind, force=True)


def rate(path, steps, prompt, threads):
    """Print the rates of generating and of reading a prompt, each after a short run."""
    import ctranslate2

    model = ctranslate2.Generator(path, device="cpu", inter_threads=1, intra_threads=threads)

    def seconds(read, generated):
        tokens = [[f"w{7 + i}" for i in range(read)]]
        options = {"max_length": generated, "min_length": generated, "sampling_topk": 1}
        start = time.perf_counter()
        (found,) = model.generate_batch(tokens, include_prompt_in_result=False, **options)
        assert len(found.sequences_ids[0]) == generated
        return time.perf_counter() - start

    seconds(1, 4)
    print(f"achieved tok/s: {steps / seconds(1, steps):f}")
    seconds(min(prompt, 16), 1)
    print(f"prompt tok/s: {prompt / seconds(prompt, 1):f}")
    print(f"ctranslate2 {ctranslate2.__version__}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["convert"]:
        convert(*sys.argv[2:])
    elif sys.argv[1:2] == ["rate"]:
        rate(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        sys.exit(__doc__)
