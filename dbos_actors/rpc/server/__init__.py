"""gRPC servers on Trio."""
