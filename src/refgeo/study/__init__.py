"""The protocol as a graph of stages over files."""
