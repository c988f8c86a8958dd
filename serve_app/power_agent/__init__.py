"""The privileged process of a node: leases on the power limits of its GPUs, and nothing else.

It imports nvidia-ml-py and the standard library alone (a test watches that), so that what runs as
root can be read in an hour.
"""
