"""Where domains meet: a loop over an ordered list of controllers, and the actor that owns the store."""
