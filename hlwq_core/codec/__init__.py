"""Making codes from weights: the author's encoder, searched norms, compensation."""
