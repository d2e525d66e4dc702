"""Figures of the page, one module per section. Each returns panels: a figure with its words and numbers, or why there is none."""
