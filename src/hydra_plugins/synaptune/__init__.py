"""The Hydra sweepers. The folder above has no __init__.py, which would hide other plugins."""
