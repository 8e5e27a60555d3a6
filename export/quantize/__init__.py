"""Weight quantisation of the language model: blocks, activation-aware search, imports."""
