"""The private parts of Ray that Sundog must use: one module each, pinned to Ray 2.60.

Each has a contract test in `tests/integration/test_rayapi_*.py` that fails first when Ray moves.
"""
