"""The command line: one file a command. Results go to stdout, everything else to stderr; exit 1 failed, 2 misused."""
