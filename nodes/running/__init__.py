"""How a packed model runs inside ComfyUI: operations, patchers, kept weights, recordings."""
