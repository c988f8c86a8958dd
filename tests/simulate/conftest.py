"""Compiles the simulator once for all runs of the tests."""

from serve_app.simulator.compiled import keep_compiled

keep_compiled()
