"""Work that answers: the gateway, its protocols and data path, and the replicas behind it."""
