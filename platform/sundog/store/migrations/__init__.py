"""The schema's history, applied in order whenever the store is opened."""
