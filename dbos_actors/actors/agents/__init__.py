"""One actor for each agent: its record, its runs, its results."""
