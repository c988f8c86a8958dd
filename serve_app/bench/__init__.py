"""Open-loop load against an OpenAI-compatible server; what a client sees of latency and energy."""
