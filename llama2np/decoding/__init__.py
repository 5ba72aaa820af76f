"""From a network's logits to tokens: generation, sampling, chat, beam and speculative decoding."""
