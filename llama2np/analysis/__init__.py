"""Analysis of a network: the logit lens, evaluation on text, pictures."""
