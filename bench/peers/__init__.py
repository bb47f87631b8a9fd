"""Servers to compare with, each doing the same durable work per call in the usual way of its world.

Every peer is a program that reads `PORT` (0: any) and `REDIS_ADDR` (host:port)
from its environment and prints ``ready address=HOST:PORT`` once it serves.
"""
