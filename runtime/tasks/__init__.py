"""What a model can be asked, a file per kind of task; `VisionLLM` is all of them together."""
