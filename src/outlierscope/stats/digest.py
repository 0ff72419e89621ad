"""Digest: what is computed once per site and batch while the tensor is in cache."""
