"""Looking at what a network does: the logit lens, evaluation on text, pictures."""
