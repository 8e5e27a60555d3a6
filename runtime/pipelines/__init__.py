"""Pipelines: what a model family chains. ``loading`` makes one out of a bundle."""
