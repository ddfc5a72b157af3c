"""Our Hydra sweepers; the folder above has no __init__.py, or the plugins of other packages would disappear."""
