"""The embedded world: a fictional town and the model that knows it."""
