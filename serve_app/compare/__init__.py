"""The same load against bare vLLM, stock `ray.serve.llm` and JouleServe, side by side."""
