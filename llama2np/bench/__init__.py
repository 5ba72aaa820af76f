"""Speed: how many tokens a second, and how many this machine could do at most."""
