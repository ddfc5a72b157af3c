"""The studies in a browser, while they run: our live pages and optuna-dashboard behind one door (server.py)."""
