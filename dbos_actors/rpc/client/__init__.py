"""gRPC channels on Trio."""
