"""The configuration tree, its presets and overrides."""
