"""`ray job submit --working-dir . -- python jobs/ingest.py`."""

from sundog import ingest

if __name__ == "__main__":
    ingest()
