"""Training: state, step, optimizer, loop, checkpoints, metrics. Import from the modules."""
