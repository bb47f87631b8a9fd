"""The RPCs over actors and queries, and what operators add to every call."""
