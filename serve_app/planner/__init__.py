"""What a load will cost, and what to run for it: `jouleserve plan`."""
