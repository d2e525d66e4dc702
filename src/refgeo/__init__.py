"""refgeo: what did safety fine-tuning do to a language model, when, why, and does it hold against someone who adapts?"""

__version__ = "0.1.0"
