"""The embedded demo: a small world of pictures and a model trained on it."""
