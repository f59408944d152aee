"""The parts of scripts/make_tiny.py: what the tiny model is made of."""
