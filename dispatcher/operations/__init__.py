"""What operators run beside the servers: explanations, checks and repairs of a live zone."""
