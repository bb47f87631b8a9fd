"""The rules: pure functions and state machines over the messages of the contract."""
