"""The arms: losses, the case pool, one loop, checkpoints with exact resume."""
