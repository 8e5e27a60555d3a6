"""Measuring: how right the answers are, and how long they take. Nothing of ours imports this."""
