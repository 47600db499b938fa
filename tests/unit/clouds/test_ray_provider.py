"""GCP and Azure through Ray's own providers, played by one that answers as their APIs do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from sundog.capacity.compile import compile_cluster
from sundog.capacity.provider import ElasticProvider
from sundog.clock import ManualClock
from sundog.clouds.azure import Azure
from sundog.clouds.base import (
    AuthRefused,
    CapacityRefused,
    Order,
    PriceRefused,
    QuotaRefused,
    Rejected,
    Transient,
    Unsupported,
)  # fmt: skip
from sundog.clouds.gcp import Gcp
from sundog.clouds.ray_provider import RayCloud
from sundog.errors import ClusterError
from sundog.ledger import FileLedger

SPECS = Path(__file__).parents[3] / "cluster-configs" / "specs"


def operation(code: str, message: str) -> Exception:
    """As Ray's GCP provider raises what a finished operation says."""
    return Exception({"errors": [{"code": code, "message": message}]})


ZONE = "projects/p/zones/us-central1-a"
STOCKOUT = operation(
    "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS",
    f"The zone '{ZONE}' does not have enough resources available to fulfill the request.",
)
GCP = [
    (STOCKOUT, CapacityRefused),
    (operation("QUOTA_EXCEEDED", "Quota 'PREEMPTIBLE_NVIDIA_L4_GPUS' exceeded.  Limit: 1.0"),
     QuotaRefused),
    (Exception('<HttpError 403 when requesting https://x returned "Quota \'GPUS_ALL_REGIONS\' '
               'exceeded. Limit: 0.0 globally.". Details: "[{\'reason\': \'quotaExceeded\'}]">'),
     QuotaRefused),
    (Exception('<HttpError 403 when requesting https://x returned "Rate Limit Exceeded". '
               'Details: "[{\'reason\': \'rateLimitExceeded\'}]">'), Transient),
    (Exception('<HttpError 404 when requesting https://x returned "The resource '
               f"'{ZONE}/machineTypes/a3-highgpu-8g' was not found\">"), Unsupported),
    (Exception('<HttpError 403 when requesting https://x returned "Required '
               '\'compute.instances.create\' permission for \'projects/p\'">'), AuthRefused),
    (Exception('<HttpError 400 when requesting https://x returned "Invalid value for field '
               '\'resource.disks[0]\'">'), Rejected),
    (Exception('<HttpError 503 when requesting https://x returned "backendError">'), Transient),
    (TimeoutError("timed out"), Transient),
]  # fmt: skip


class Arm(Exception):
    """As the Azure SDK raises: the deployment's own code outside, what counts inside."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__("(DeploymentFailed) At least one resource deployment operation failed.")
        inner = type("E", (), {"code": code, "message": message, "details": None})()
        self.error = type(
            "E", (), {"code": "DeploymentFailed", "message": "", "details": [inner]}
        )()


AZURE = [
    (Arm("SkuNotAvailable", "The requested size is currently not available in location 'eastus'"),
     CapacityRefused),
    (Arm("AllocationFailed", "We do not have sufficient capacity for the requested VM size."),
     CapacityRefused),
    (Arm("ZonalAllocationFailed", "Allocation failed."), CapacityRefused),
    (Arm("OverconstrainedAllocationRequest", "the condition is too restrictive"), CapacityRefused),
    (Arm("OverconstrainedZonalAllocationRequest", "Constraints: VM Size"), CapacityRefused),
    (Arm("OperationNotAllowed", "Operation results in exceeding approved Total Regional Spot Cores "
         "quota"), QuotaRefused),
    (Arm("QuotaExceeded", "x"), QuotaRefused),
    (Arm("SpotPriceGreaterThanProvidedMaxPrice", "x"), PriceRefused),
    (Arm("NotAvailableForSubscription", "x"), Unsupported),
    (Arm("AuthorizationFailed", "The client does not have authorization"), AuthRefused),
    (Arm("TooManyRequests", "x"), Transient),
    (Arm("InvalidTemplateDeployment", "x"), Rejected),
    (ConnectionError("reset"), Transient),
]  # fmt: skip


@pytest.mark.parametrize(("error", "kind"), GCP)
def test_gcp_refusals_have_their_kinds(error: Exception, kind: type[Exception]) -> None:
    assert type(Gcp().typed(error)) is kind


@pytest.mark.parametrize(("error", "kind"), AZURE)
def test_azure_refusals_have_their_kinds(error: Exception, kind: type[Exception]) -> None:
    assert type(Azure().typed(error)) is kind


class Cached(dict[str, Any]):
    """A node of Ray's providers' last listing: a mapping on Azure, with methods on GCP."""

    def get_labels(self) -> dict[str, str]:
        return dict(self["tags"])

    def is_running(self) -> bool:
        return bool(self["status"] == "running")

    def get_internal_ip(self) -> str | None:
        return self.get("internal_ip")

    def get_external_ip(self) -> str | None:
        return self.get("external_ip")


class Played:
    """What Ray's provider does in one zone: creates one by one, lists by label, names nodes itself.

    Its questions about a single node list all of them anew, and a node without a public address has
    no key of that name.
    """

    def __init__(self, zone: str = "us-central1-a") -> None:
        self.zone, self.nodes, self.made = zone, {}, []
        self.listings = 0
        self.born: list[dict[str, str]] = []
        self.refuse: Any = lambda config, number: None

    def create_node(self, config: dict[str, Any], labels: dict[str, str], count: int) -> None:
        for number in range(count):
            self.made.append(config)
            self.born.append(labels)
            error = self.refuse(config, number)
            if error:
                raise error
            self.nodes[f"{self.zone}-n{len(self.made)}"] = dict(labels)

    def non_terminated_nodes(self, labels: dict[str, str]) -> list[str]:
        self.listings += 1
        return [i for i, has in self.nodes.items() if labels.items() <= has.items()]

    def _get_cached_node(self, id_: str) -> Cached:
        return Cached(tags=self.nodes[id_], status="running", internal_ip="10.0.0.2")

    def set_node_tags(self, id_: str, labels: dict[str, str]) -> None:
        self.nodes[id_].update(labels)

    def terminate_node(self, id_: str) -> None:
        self.nodes.pop(id_, None)


TAGS = {"ray-node-type": "worker", "ray-user-node-type": "l4", "ray-node-name": "ray-g-worker"}


def elastic(
    spec: str, dialect: Any, zones: list[str], folder: Path
) -> tuple[ElasticProvider, dict[str, Played], dict[str, Any], ManualClock]:
    data = yaml.safe_load((SPECS / f"{spec}.yaml").read_text())
    if spec == "gcp":
        data["cloud"]["gcp"]["more_zones"] = zones[1:]
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump(data))
    config = compile_cluster(path).documents[0]
    played, clock = {z: Played(z) for z in zones}, ManualClock(5000.0)
    made = ElasticProvider(
        config["provider"], config["cluster_name"], cloud=RayCloud(dialect, played, clock),
        ledger=FileLedger(folder / "ledger"), clock=clock,
    )  # fmt: skip
    return made, played, config, clock


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUNDOG_STATE_DIR", str(tmp_path))


def spot(config: dict[str, Any]) -> bool:
    return bool(config["scheduling"][0].get("preemptible"))


def test_gcp_goes_down_its_ladder_in_one_call_and_over_its_zones(tmp_path: Path) -> None:
    zones = ["us-central1-a", "us-central1-b"]
    made, played, config, clock = elastic("gcp", Gcp(), zones, tmp_path)
    for each in played.values():
        each.refuse = lambda config, number: STOCKOUT if spot(config) else None
    node_config = config["available_node_types"]["l4"]["node_config"]
    [node] = made.create_node(node_config, TAGS, 1)
    assert made.state()["cooldowns"]
    tried = [c for p in played.values() for c in p.made]
    assert [spot(c) for c in tried].count(False) == 1
    assert {p.zone for p in played.values() if p.made} == set(zones)
    assert all(f"zones/{p.zone}/" in c["disks"][0]["initializeParams"]["diskType"]
               for p in played.values() for c in p.made)  # fmt: skip
    # What it was born with survives the alphabet of labels, and a head that starts anew.
    again = ElasticProvider(
        config["provider"], config["cluster_name"],
        cloud=RayCloud(Gcp(), played, clock), ledger=FileLedger(tmp_path / "l2"), clock=clock,
    )  # fmt: skip
    assert again.non_terminated_nodes({"ray-node-type": "worker"}) == [node]
    assert again.node_tags(node)["ray-node-name"] == "ray-g-worker"
    assert again.state()["usd_hour"] == pytest.approx(0.134023 + 0.706832)
    # Cooled down, spot is back.
    for each in played.values():
        each.refuse = lambda config, number: None
    clock.advance(31)
    made.create_node(node_config, TAGS, 1)
    newest = [c for p in played.values() for c in p.made][-1]
    assert spot(newest)
    made.terminate_nodes(made.non_terminated_nodes({}))
    assert all(not p.nodes for p in played.values())


def test_azure_goes_down_its_ladder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Azure, "after_refusal", lambda *_: None)
    made, played, config, _ = elastic("azure", Azure(), [""], tmp_path)
    sku = Arm("SkuNotAvailable", "not available in location")
    is_spot = lambda c: c["azure_arm_parameters"].get("priority") == "Spot"  # noqa: E731
    played[""].refuse = lambda config, number: sku if is_spot(config) else None
    pools = config["provider"]["sundog"]["pools"]
    name = next(n for n in pools if any(o["market"] == "on-demand" for o in pools[n]["offers"]))
    tags = {**TAGS, "ray-user-node-type": name}
    made.create_node(config["available_node_types"][name]["node_config"], tags, 1)
    asked = [is_spot(c) for c in played[""].made]
    assert asked == [True] * (len(asked) - 1) + [False]
    sizes = [(is_spot(c), c["azure_arm_parameters"]["vmSize"]) for c in played[""].made]
    assert len(set(sizes)) == len(sizes), "a rung was asked twice"


@pytest.mark.parametrize("dialect", [Gcp(), Azure()], ids=["gcp", "azure"])
def test_a_listing_asks_once_however_many_nodes_there_are(dialect: Any) -> None:
    played = Played("z")
    cloud = RayCloud(dialect, {"z": played}, ManualClock(7.0))
    config = {"machineType": "a", "disks": [], "azure_arm_parameters": {}}
    cloud.launch(Order("spot", "z", "g2-standard-4", 5, "abc", {"Name": "n"}, config))
    played.listings = 0
    found = cloud.machines("c")
    assert played.listings == 1
    assert {(m.state, m.internal_ip, m.external_ip) for m in found} == {
        ("running", "10.0.0.2", None)
    }  # fmt: skip


def test_gcp_lets_what_can_move_on_maintenance_move_the_head_above_all() -> None:
    def scheduling(shape: str, **config: Any) -> Any:
        return Gcp().config(Order("on-demand", "z", shape, 1, "t", {}, config)).get("scheduling")

    assert scheduling("e2-standard-4") is None
    assert scheduling("n2-standard-8", scheduling=[{"preemptible": True}]) is None
    ends = [{"onHostMaintenance": "TERMINATE", "automaticRestart": False}]
    for shape in ("g2-standard-4", "a2-highgpu-1g", "a3-megagpu-8g", "a4-highgpu-8g"):
        assert scheduling(shape) == ends
    assert scheduling("n1-standard-8", guestAccelerators=[{"acceleratorCount": 1}]) == ends


def test_a_gcp_machine_can_read_on_itself_what_its_labels_say() -> None:
    tags = {"sundog:pool": "l4", "sundog:usd-hour": "0.300000", "ray-cluster-name": "g"}
    config = {"metadata": {"items": [{"key": "x", "value": "y"}]}}
    made = Gcp().config(Order("spot", "z", "g2-standard-4", 1, "t", tags, config))
    assert {i["key"]: i["value"] for i in made["metadata"]["items"]} == {
        "x": "y", "sundog-pool": "l4", "sundog-usd-hour": "0.300000", "ray-cluster-name": "g"
    }  # fmt: skip
    assert config == {"metadata": {"items": [{"key": "x", "value": "y"}]}}


class Network:
    """Interfaces and addresses of a resource group; one is held for a while after a refusal."""

    def __init__(self) -> None:
        self.interfaces: dict[str, str | None] = {}
        self.addresses: dict[str, str | None] = {}
        self.held = 1
        self.network_interfaces = self._kind(self.interfaces, "virtual_machine")
        self.public_ip_addresses = self._kind(self.addresses, "ip_configuration")

    def _kind(self, rows: dict[str, str | None], holder: str) -> Any:
        outer = self

        class Kind:
            def list(self, group: str) -> list[Any]:
                assert group == "sundog"
                return [SimpleNamespace(**{"name": n, holder: h}) for n, h in rows.items()]

            def begin_delete(self, group: str, name: str) -> Any:
                if outer.held:
                    outer.held -= 1
                    raise Arm("NicReservedForAnotherVm", name)
                rows.pop(name)
                for address, interface in list(outer.addresses.items()):
                    if interface == name:
                        outer.addresses[address] = None
                return SimpleNamespace(wait=lambda: None)

        return Kind()


def test_a_refused_azure_machine_leaves_no_interface_and_no_address() -> None:
    """As Ray's template makes them, before the machine, under the name of the deployment."""
    played, network, clock = Played(""), Network(), ManualClock(0.0)
    played.provider_config = {"resource_group": "sundog"}  # type: ignore[attr-defined]
    played.network_client = network  # type: ignore[attr-defined]

    def refuse(config: dict[str, Any], number: int) -> Exception | None:
        name = f"{played.born[-1]['ray-node-name']}-ab12-cd34{number}"
        machine = f"vm{number}" if number == 0 else None
        network.interfaces[f"{name}-nic"] = machine
        network.addresses[f"{name}-ip"] = f"{name}-nic"
        return None if machine else Arm("AllocationFailed", "no capacity")

    played.refuse = refuse
    network.interfaces["ray-azure-worker-another-nic"] = None
    network.addresses["ray-azure-worker-another-ip"] = None
    cloud = RayCloud(Azure(), {"": played}, clock, background=lambda work: work())
    tags = {"Name": "ray-azure-worker", "ray-cluster-name": "azure"}
    made = cloud.launch(Order("spot", "", "x", 2, "feedbeef00", tags, {}))
    assert len(made) == 1, "the other was refused"
    assert clock.now_s() == 60.0, "the interface was held for a while"
    stay = "ray-azure-worker-feedbeef-ab12-cd340"
    assert set(network.interfaces) == {f"{stay}-nic", "ray-azure-worker-another-nic"}
    assert set(network.addresses) == {f"{stay}-ip", "ray-azure-worker-another-ip"}


def test_an_azure_order_that_may_still_be_at_it_is_left_alone() -> None:
    played = Played("")
    played.refuse = lambda config, number: ConnectionError("reset")
    cleaned: list[Any] = []
    cloud = RayCloud(Azure(), {"": played}, ManualClock(), background=cleaned.append)
    with pytest.raises(Transient):
        cloud.launch(Order("spot", "", "x", 1, "t", {"Name": "n"}, {}))
    assert cleaned == []


def test_one_of_two_granted_is_kept_and_found_by_its_token() -> None:
    played = Played("z")
    played.refuse = lambda config, number: STOCKOUT if number == 1 else None
    cloud = RayCloud(Gcp(), {"z": played}, ManualClock(7.0))
    config = {"machineType": "a", "disks": []}
    order = Order("spot", "z", "g2-standard-4", 2, "abc", {"ray-node-name": "n"}, config)
    made = cloud.launch(order)
    assert [m.id for m in made] == ["z-n1"] == [m.id for m in cloud.bought("abc")]
    assert (made[0].shape, made[0].launched_s) == ("g2-standard-4", 7.0)
    assert cloud.bought("other") == []
    with pytest.raises(Unsupported):
        cloud.launch(Order("spot", "z9", "a", 1, "t", {}))


def test_labels_hold_only_what_gcp_takes_and_come_back() -> None:
    tags = {"sundog:usd-hour": "0.300000", "sundog:why": "cheapest rung left", "Name": "ray-g-worker",
            "sundog:pool": "l4", "sundog:zone": "us-central1-a"}  # fmt: skip
    labels = Gcp().labels(tags)
    assert all(k == k.lower() and ":" not in k for k in labels)
    assert labels["ray-node-name"] == "ray-g-worker"
    back = Gcp().tags(labels)
    assert back == {k: v for k, v in tags.items() if k != "sundog:why"}


def test_a_missing_sdk_is_said_with_what_to_install(tmp_path: Path) -> None:
    from sundog.capacity.cloud_of import make_cloud

    config = compile_cluster(SPECS / "azure.yaml").documents[0]
    try:
        import azure.mgmt.compute  # noqa: F401
    except ImportError:
        with pytest.raises(ClusterError, match="SDK of azure") as caught:
            make_cloud(config["provider"], "x")
        assert "pip install azure" in caught.value.fix
