"""The four measurements of an anchor."""
