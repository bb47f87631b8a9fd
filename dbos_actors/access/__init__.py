"""Who may do what: roles, the token file, and the principals that it names."""
