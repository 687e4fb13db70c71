"""The command line: one module per command. Only `main` turns errors into exit codes."""
