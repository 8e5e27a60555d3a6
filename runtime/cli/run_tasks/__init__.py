"""The tasks of ``visionllm-edge run``: a file per kind, each with its options and what it calls."""
