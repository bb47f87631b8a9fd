"""Watches: events of the log, as they are committed, to everybody who asked for them.

| module | owns |
|---|---|
| `entries` | an event as watches see it, and the cursors |
| `filters` | what one watch wants, and who wants an event |
| `ring` | the latest events in memory, shared by all watches |
| `log_reader` | older events, from Redis |
| `watchers` | all of it together: who is told of a commit, who has to catch up |
"""
