"""What `tools/benchmark` measures and shows."""
