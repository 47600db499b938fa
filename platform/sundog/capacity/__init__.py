"""Which nodes to have: specs compiled to what `ray up` takes, offers chosen, notices heard.

Submodules are imported by name: `decide`, `state` and `compile` are pure and light, `provider` and
`preemption` pull in Ray.
"""
