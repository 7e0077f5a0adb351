"""What a person runs: one folder or file a command."""
