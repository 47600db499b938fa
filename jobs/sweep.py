"""`ray job submit --working-dir . -- python jobs/sweep.py SPEC`."""

from sundog import sweep

if __name__ == "__main__":
    sweep()
