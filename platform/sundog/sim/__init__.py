"""The deciders of production on recorded traces, beside the peers and the offline optimum."""
