"""`python -m swarmgame`: the same as the `swarmgame` command."""

from swarmgame.cli.main import main

if __name__ == "__main__":
    main()
