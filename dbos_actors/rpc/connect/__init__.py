"""The Connect protocol (connectrpc.com), as a server speaks it. Pure: no I/O, no connection."""
