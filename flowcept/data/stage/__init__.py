"""Captioned clips of glTF models that act in three dimensions."""
