"""What server and client share: HTTP/2, gRPC messages, metadata, statuses, TLS."""
