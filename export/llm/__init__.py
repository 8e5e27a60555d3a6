"""The language model by itself: its weights from any source, its canonical graph, its compile."""
