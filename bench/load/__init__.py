"""The load generator: gRPC calls as prepared HTTP/2 frames on plain sockets.

It runs in processes of its own (`python -m bench.load`), takes one JSON load on
standard input and prints one JSON outcome. It imports nothing of the service
but the contract's message classes, which build the request templates.
"""
