"""The workload: how requests arrive, how long they are, and what their lengths cost.

`fit` gives the request-energy model of a request log or of measured rows; `describe` bins a trace
and compares energy estimates of the whole of it.
"""
