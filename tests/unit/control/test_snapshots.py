"""Publishing routes: versions, waiting, and who has acknowledged what."""

import asyncio
import threading

from sundog.clock import ManualClock
from sundog.control.snapshots import GATEWAY_GONE_S, Snapshots


def wait(snapshots, *arguments):
    return asyncio.run(snapshots.wait(*arguments))


def test_any_number_of_gateways_wait_at_once_and_take_no_thread():
    async def main():
        snapshots = Snapshots(1, 0, ManualClock())
        waiting = [asyncio.ensure_future(snapshots.wait(f"g{n}", (0, 0), 60)) for n in range(500)]
        await asyncio.sleep(0)
        threads = threading.active_count()
        gone = asyncio.ensure_future(snapshots.wait("gone", (0, 0), 60))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.to_thread(snapshots.publish, {"a": {}}, [])
        got = await asyncio.gather(*waiting)
        assert {id(g) for g in got} == {id(snapshots.body)}
        assert threads < 100
        assert len(snapshots.gateways()) == 501

    asyncio.run(main())


def test_only_a_difference_is_a_new_version():
    snapshots = Snapshots(3, 10, ManualClock())
    assert snapshots.publish({"a": {}}, [])
    assert not snapshots.publish({"a": {}}, [])
    assert snapshots.publish({"a": {"x": 1}}, [])
    assert snapshots.version == 12
    assert snapshots.body["epoch"] == 3


def test_a_gateway_gets_what_is_newer_and_waits_for_it():
    snapshots = Snapshots(1, 0, ManualClock())
    assert wait(snapshots, "g", (0, 0), 0) is None
    threading.Timer(0.05, snapshots.publish, ({"a": {}}, [])).start()
    assert wait(snapshots, "g", (0, 0), 5)["services"] == {"a": {}}
    assert wait(snapshots, "g", (1, 1), 0) is None
    assert wait(Snapshots(1, 0, ManualClock()), "g", (9, 9), 0) is None


def test_a_new_epoch_is_newer_whatever_its_version():
    snapshots = Snapshots(2, 0, ManualClock())
    snapshots.publish({}, [])
    assert wait(snapshots, "g", (1, 500), 0) is not None


def test_acknowledgement_is_asking_for_more_and_the_gone_do_not_count():
    clock = ManualClock()
    snapshots = Snapshots(1, 0, clock)
    assert snapshots.acknowledged(1), "nobody routes by anything older"
    snapshots.publish({}, [])
    wait(snapshots, "g", (0, 0), 0)
    wait(snapshots, "h", (1, 1), 0)
    assert not snapshots.acknowledged(1)
    wait(snapshots, "g", (1, 1), 0)
    assert snapshots.acknowledged(1)
    snapshots.publish({"a": {}}, [])
    wait(snapshots, "h", (1, 2), 0)
    assert not snapshots.acknowledged(2)
    clock.advance(GATEWAY_GONE_S)
    assert snapshots.gateways() == []
    assert snapshots.acknowledged(2)
