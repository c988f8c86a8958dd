"""Policies x loads x models in the simulator, each baseline tuned in hindsight, as one report."""
