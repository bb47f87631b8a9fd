"""The actors of the service: one for each agent, and one for all tasks."""
