"""Figures of the page, one module per section. Each returns panels: a plotly figure in words and numbers, or the reason why there is none."""
