"""`python -m mia`: the command line, where its script is not on the path."""

from mia.cli.main import main

if __name__ == "__main__":
    main()
