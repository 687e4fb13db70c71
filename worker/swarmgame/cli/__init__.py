"""The command line: one module per command, and `main`, which alone turns errors into exit codes."""
