"""Traces by name: files, rate curves, loads generated from published figures, public downloads."""
