"""The scheduler: one actor for all tasks, their timers and their subscribers."""
