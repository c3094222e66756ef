"""The benchmark: does a negative prompt work, at what price, and how sure are we."""
