"""Training: one loop, many tasks."""
