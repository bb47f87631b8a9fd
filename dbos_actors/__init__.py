"""DBOS actors: a gRPC service that keeps the state of an Internet measurement network."""
