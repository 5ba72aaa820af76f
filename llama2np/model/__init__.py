"""What a network is: its description, weights, state and program, and the NumPy engine."""
