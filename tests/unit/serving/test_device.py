"""Where an exported model runs."""

import logging

from sundog.serving.replica import choose_device


def test_a_gpu_is_used_where_ray_gave_one_and_torch_can(caplog):
    assert choose_device([], True) == "cpu"
    assert choose_device(["0"], True) == "cuda"
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING, "sundog.replica"):
        assert choose_device(["0"], False) == "cpu"
    assert "torch cannot use" in caplog.text
