"""The simulator beside the real thing: the same arrivals through Ray and vLLM and through it."""
