"""llama.cpp's side of the report, in a Python that has llama-cpp-python and gguf.

    python llamacpp.py write OUT.gguf SHAPE_AS_JSON     random weights of that shape
    python llamacpp.py rate MODEL.gguf STEPS PROMPT THREADS
    python llamacpp.py answer MODEL.gguf THREADS                 "generate 64" or "prompt 256"
    python llamacpp.py batched MODEL.gguf PROMPT STEPS SEQUENCES THREADS CPU

`rate` prints tokens per second as the report reads them, `batched` as serving.py does: that is what
llama-batched-bench measures. They evaluate tokens and sample none, which is to llama.cpp's
advantage.
"""

import json
import sys
import time

import numpy as np


def write(path, shape):
    """Write a Llama of the shape that report.py states, in float32 or Q8_0."""
    import gguf

    s, random, writer = json.loads(shape), np.random.default_rng(0), gguf.GGUFWriter(path, "llama")
    dim, hidden, kv_dim, vocab = s["dim"], s["hidden_dim"], s["kv_dim"], s["vocab_size"]
    q8 = gguf.GGMLQuantizationType.Q8_0

    def matrix(name, *size):
        values = random.standard_normal(size, np.float32) * np.float32(0.02)
        if s["q8"]:
            writer.add_tensor(name, gguf.quants.quantize(values, q8), raw_dtype=q8)
        else:
            writer.add_tensor(name, values)

    add_header(writer, s)
    matrix("token_embd.weight", vocab, dim)
    if not s["tied"]:
        matrix("output.weight", vocab, dim)
    writer.add_tensor("output_norm.weight", np.ones(dim, np.float32))
    for i in range(s["n_layers"]):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{norm}.weight", np.ones(dim, np.float32))
        for name, *size in (
            *[("attn_q", dim, dim), ("attn_k", kv_dim, dim), ("attn_v", kv_dim, dim)],
            *[("attn_output", dim, dim), ("ffn_gate", hidden, dim), ("ffn_up", hidden, dim)],
            ("ffn_down", dim, hidden),
        ):
            matrix(f"blk.{i}.{name}.weight", *size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_header(writer, s):
    vocab = s["vocab_size"]
    writer.add_context_length(s["seq_len"])
    writer.add_embedding_length(s["dim"])
    writer.add_block_count(s["n_layers"])
    writer.add_feed_forward_length(s["hidden_dim"])
    writer.add_head_count(s["n_heads"])
    writer.add_head_count_kv(s["n_kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(s["dim"] // s["n_heads"])
    writer.add_vocab_size(vocab)
    writer.add_file_type(7 if s["q8"] else 0)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokens += [f"▁w{i}" for i in range(vocab - len(tokens))]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(vocab)])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (vocab - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _seconds(path, context, threads):
    """A function of batches of tokens: the seconds to evaluate them after one token."""
    import llama_cpp

    model = llama_cpp.Llama(
        path,
        **dict(n_threads=threads, n_threads_batch=threads, n_ctx=context, n_batch=512),
        verbose=False,
    )

    def seconds(*batches):
        model.reset()
        model.eval([5])
        start = time.perf_counter()
        for batch in batches:
            model.eval(batch)
        return time.perf_counter() - start

    return seconds


def rate(path, steps, prompt, threads):
    """Print the rates of generating and of reading a prompt, each after a short run."""
    import llama_cpp

    seconds = _seconds(path, max(steps, prompt) + 8, threads)
    tokens = [7 + i for i in range(max(steps, prompt))]
    singles = [[token] for token in tokens[:steps]]
    seconds(*singles[:4])
    print(f"achieved tok/s: {steps / seconds(*singles):f}")
    seconds(tokens[:16])
    print(f"prompt tok/s: {prompt / seconds(tokens[:prompt]):f}")
    print(f"llama-cpp-python {llama_cpp.__version__}")


def answer(path, threads):
    """Print the tokens per second for each line of input: generate COUNT, or prompt COUNT."""
    seconds = _seconds(path, 1024, threads)
    for line in sys.stdin:
        task, count = line.split()
        tokens = [7 + i for i in range(int(count))]
        batches = [[token] for token in tokens] if task == "generate" else [tokens]
        print(len(tokens) / seconds(*batches), flush=True)


def batched(path, prompt, steps, count, threads, cpu):
    """Print the rates of reading `count` prompts and of generating in all sequences at once.

    cpu: 1 for processor time.
    """
    import llama_cpp.llama_cpp as api

    clock = time.process_time if cpu else time.perf_counter
    quiet = api.llama_log_callback(lambda *_: None)  # it must live as long as the library uses it
    api.llama_log_set(quiet, None)
    api.llama_backend_init()
    options = api.llama_model_default_params()
    model = api.llama_model_load_from_file(path.encode(), options)
    options = api.llama_context_default_params()
    options.n_ctx = count * (prompt + steps + 8)
    options.n_batch, options.n_ubatch, options.n_seq_max = 2048, 512, count
    options.n_threads = options.n_threads_batch = threads
    context = api.llama_init_from_model(model, options)
    batch = api.llama_batch_init(2048, 0, 1)

    def decode(rows):
        """Read rows of (token, position, sequence, whether its logits are wanted)."""
        for first in range(0, len(rows), 2048):
            some = rows[first : first + 2048]
            batch.n_tokens = len(some)
            for i, (token, position, sequence, wanted) in enumerate(some):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            if api.llama_decode(context, batch):
                sys.exit("llama_decode failed")
        api.llama_synchronize(context)

    def run(prompt, steps):
        api.llama_memory_clear(api.llama_get_memory(context), True)
        start = clock()
        decode(
            [(7 + i, i, s, i == prompt - 1) for s in range(count) for i in range(prompt)],
        )
        read = clock()
        for i in range(steps):
            decode([(300 + i + s, prompt + i, s, True) for s in range(count)])
        return read - start, clock() - read

    run(min(prompt, 16), 2)
    reading, generating = run(prompt, steps)
    print(f"prompt tok/s: {count * prompt / reading:f}")
    print(f"generation tok/s: {count * steps / generating:f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["write"]:
        write(*sys.argv[2:])
    elif sys.argv[1:2] == ["rate"]:
        rate(sys.argv[2], *map(int, sys.argv[3:]))
    elif sys.argv[1:2] == ["answer"]:
        answer(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:2] == ["batched"]:
        batched(sys.argv[2], *map(int, sys.argv[3:]))
    else:
        sys.exit(__doc__)
