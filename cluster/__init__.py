"""Running on a cluster."""
