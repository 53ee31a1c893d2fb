"""The `vshard` command: one module a command, installed as `vshard_cli`."""
