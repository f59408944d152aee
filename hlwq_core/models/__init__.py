"""What the pack knows of model families: how they are recognised, their tensors and configuration."""
