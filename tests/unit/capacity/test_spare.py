"""What a spare is asked for: room like the node's, in its pool, elsewhere."""

import pytest

from sundog.capacity.spare import room_of
from sundog.errors import NotFound

NODE = {
    "NodeID": "n1",
    "Resources": {"CPU": 8.0, "GPU": 4.0, "memory": 5e9, "node:10.0.0.1": 1.0},
    "Labels": {"sundog.pool": "train", "ray.io/node-id": "n1"},
}


def test_room_is_the_whole_node_elsewhere_in_its_pool():
    room, where = room_of([NODE], "n1")
    assert room == {"CPU": 8.0, "GPU": 4.0}
    assert where == {"ray.io/node-id": "!n1", "sundog.pool": "train"}


def test_a_node_without_a_pool_or_a_gpu():
    room, where = room_of(
        [{"NodeID": "n2", "Resources": {"CPU": 1.0, "GPU": 0}, "Labels": None}], "n2"
    )
    assert (room, where) == ({"CPU": 1.0}, {"ray.io/node-id": "!n2"})


def test_no_such_node_and_one_that_runs_nothing():
    with pytest.raises(NotFound, match="no node n3"):
        room_of([NODE], "n3")
    with pytest.raises(NotFound, match="neither"):
        room_of([{"NodeID": "head", "Resources": {"CPU": 0.0}}], "head")
