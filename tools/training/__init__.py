"""How a storyteller is made: corpus, tokenizer, network, training, export."""
