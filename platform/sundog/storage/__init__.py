"""Where bytes live: the storage root, datasets, the model registry, run folders.

Refuses to hold intent or progress (that is the store's) and to know what a run or a service does.
"""
