"""`python -m noria` is the same as `noria`."""

from noria.cli import main

if __name__ == "__main__":
    main()
