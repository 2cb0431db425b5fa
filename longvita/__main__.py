"""`python -m longvita` runs the `longvita` command."""

from longvita.cli import main

if __name__ == "__main__":
    main()
