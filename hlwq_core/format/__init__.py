"""What the bytes of a checkpoint mean: files, codes, norms, codebooks and the rotation."""
