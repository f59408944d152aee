"""Ranks of a model computed by several, without processes."""
