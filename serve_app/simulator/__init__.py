"""What surrounds the simulator of `policies.sim`: files, progress, tables."""
