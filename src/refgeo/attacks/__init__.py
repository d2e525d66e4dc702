"""Test cases and the attacks that make them."""
