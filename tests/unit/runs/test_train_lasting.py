"""The training function travels by value: nothing of it lies in an object store that may be gone."""

from __future__ import annotations

import pickle

from sundog.rayapi.train_lasting import Carried


def test_the_training_function_needs_no_object_store():
    config = {"steps": 3}
    travelled = pickle.loads(pickle.dumps(Carried(lambda: config["steps"] * 2)))
    assert travelled.get()() == 6  # without any Ray in this process
