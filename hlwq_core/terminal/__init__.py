"""How a command speaks: progress, JSON and tables on a terminal."""
