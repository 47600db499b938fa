"""Who may: the check in every request's path, keys and their scopes. Holds no secret in clear."""
