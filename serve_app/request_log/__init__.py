"""The request log: one durable row per request, with its energy and without its text.

`jouleserve report` reads it. Not to be mixed up with the ledger (`serve_app/ledger.py`), which
holds the live totals of an application and forgets them with it.
"""
