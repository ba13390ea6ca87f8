"""What operators see: structured log lines on stderr, and metrics for Prometheus."""
