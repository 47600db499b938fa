"""`ray job submit --working-dir . -- python jobs/guard.py -- python their_script.py …`."""

from sundog import guard

if __name__ == "__main__":
    guard()
