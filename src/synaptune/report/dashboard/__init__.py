"""Live pages of running studies, and optuna-dashboard, served by one server (server.py)."""
