"""The algorithm (arXiv 2512.11438): tensors in, tensors out; no file, no device, no network."""
