"""`ray job submit --working-dir . -- python jobs/train.py SPEC`."""

from sundog import train

if __name__ == "__main__":
    train()
