"""Part of visionllm-edge."""
