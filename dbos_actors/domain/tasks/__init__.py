"""Tasks as a pure state machine: the book, its indexes, journal and recovery."""
