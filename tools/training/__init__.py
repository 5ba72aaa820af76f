"""How the model in the box is made: corpus, tokenizer, network, training, export."""
