"""The two ends of the scale: a server that does nothing, and the way it was done before."""
