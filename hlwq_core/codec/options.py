"""What a user chooses by name, apart from what does it: whoever only describes the choices imports no torch."""

from __future__ import annotations

LAYOUTS = ("published", "single")  # of a new checkpoint's files
MOMENTS = ("blocks", "full", "none")  # what a calibration gathers of inputs
NORMS = ("author", "search")  # how blocks are coded
