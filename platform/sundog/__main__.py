"""`python -m sundog`: the same as `sundog`, for a job whose only need is that Sundog is installed."""

from sundog.cli import main

if __name__ == "__main__":
    main()
