"""`ray job submit --working-dir . -- python jobs/batch.py SPEC`."""

from sundog import batch

if __name__ == "__main__":
    batch()
