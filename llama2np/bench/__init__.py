"""Speed: tokens per second, and the limits of this machine."""
