"""What works while a model samples: the packed tensor, its operators, fast mode, recordings."""
