"""Training: a folder of clips in, one model file out."""
