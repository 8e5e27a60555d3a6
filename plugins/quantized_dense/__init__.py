"""A linear layer with 8-bit weights, its bias and its activation: see spec.py."""
