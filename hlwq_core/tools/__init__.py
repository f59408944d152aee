"""What a user does with checkpoints: inspect, verify, quantize, repair, download."""
