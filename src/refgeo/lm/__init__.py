"""A causal language model as this project needs it."""
