"""The Hydra sweepers. hydra_plugins has no __init__.py, which would hide other plugins."""
