"""What an account may run on GCP and Azure, from answers in the shape of their documentation."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from sundog.capacity import account
from sundog.capacity.check import read_spec
from sundog.capacity.plan import plan_cluster, render
from sundog.clouds import azure_quotas, gcp_quotas
from sundog.clouds.base import AuthRefused, Transient

SPECS = Path(__file__).parents[3] / "cluster-configs" / "specs"


def quotas(**limits: float) -> dict:
    rows = [{"metric": k, "limit": v, "usage": 0.0} for k, v in limits.items()]
    return {"quotas": rows}


GCP = {
    "p/regions/us-central1": quotas(
        CPUS=72.0, N2_CPUS=48.0, PREEMPTIBLE_CPUS=24.0, NVIDIA_L4_GPUS=2.0,
        PREEMPTIBLE_NVIDIA_L4_GPUS=0.0, NVIDIA_T4_GPUS=4.0, PREEMPTIBLE_NVIDIA_T4_GPUS=8.0,
        SSD_TOTAL_GB=500.0,
    ),
    "p": quotas(GPUS_ALL_REGIONS=1.0, NETWORKS=5.0),
}  # fmt: skip


def test_gcp_counts_gpus_by_kind_and_spot_by_its_own_quota_where_there_is_one():
    found = gcp_quotas.allowed("p", "us-central1", get=GCP.__getitem__)
    assert found["NVIDIA_L4_GPUS", "on-demand"] == 2
    assert found["NVIDIA_L4_GPUS", "spot"] == 2, "no quota for spot: the ordinary one counts"
    assert found["NVIDIA_T4_GPUS", "spot"] == 8
    assert found["N2_CPUS", "spot"] == found["CPUS", "spot"] == 24
    assert found["GPUS_ALL_REGIONS", "any market"] == 1
    assert not any(metric.startswith("PREEMPTIBLE") for metric, _ in found)


def usage(name: str, limit: int) -> dict:
    return {
        "unit": "Count", "currentValue": 0, "limit": limit,
        "name": {"value": name, "localizedValue": f"{name} vCPUs"},
    }  # fmt: skip


def azure(pages: dict[str, dict]):
    asked = []

    def get(url: str, params: dict[str, str]) -> dict:
        asked.append(params)
        return pages[url.removeprefix(azure_quotas.API)]

    return get, asked


COMPUTE = "/subscriptions/s/providers/Microsoft.Compute"
AZURE = {
    f"{COMPUTE}/locations/eastus/usages": {
        "value": [usage("cores", 100), usage("lowPriorityCores", 10)],
        "nextLink": f"{azure_quotas.API}/more",
    },
    "/more": {"value": [usage("Standard NCASv3_T4 Family", 16), usage("standardDSv5Family", 50)]},
    f"{COMPUTE}/skus": {
        "value": [
            {"name": "Standard_NC4as_T4_v3", "family": "standard NCASv3_T4 Family"},
            {"name": "Standard_NC8as_T4_v3", "family": "standard NCASv3_T4 Family"},
            {"name": "Standard_NC6s_v3", "family": "standardNCSv3Family"},
            {"name": "Standard_nobody_buys", "family": "standardDSv5Family"},
        ],
        "nextLink": "https://elsewhere.example/steals-the-token",
    },
}


def test_azure_says_which_family_a_size_counts_in():
    get, asked = azure(AZURE)
    found = azure_quotas.allowed("s", "eastus", get=get)
    assert found == {("all families", "spot"): 10, ("NCasT4_v3", "on-demand"): 16}
    assert asked[2]["$filter"] == "location eq 'eastus'"
    assert len(asked) == 3, "a link to elsewhere is not followed"


@pytest.mark.parametrize(
    ("status", "expected"), [(401, AuthRefused), (403, AuthRefused), (500, Transient)]
)
@pytest.mark.parametrize("cloud", [gcp_quotas, azure_quotas])
def test_a_refusal_is_typed_and_shows_no_token(monkeypatch, status, expected, cloud):
    monkeypatch.setattr(gcp_quotas, "token", lambda scope: "secret-token")
    monkeypatch.setattr(azure_quotas, "_token", lambda: "secret-token")

    def get(url, *, params, headers, timeout):
        assert headers == {"Authorization": "Bearer secret-token"}
        return httpx.Response(status, request=httpx.Request("GET", url), json={})

    monkeypatch.setattr(httpx, "get", get)
    with pytest.raises(expected) as caught:
        cloud.allowed("p", "us-central1")
    assert str(status) in caught.value.message
    assert "secret-token" not in str(caught.value)


def test_the_plan_says_what_to_ask_gcp_for():
    file = str(SPECS / "gcp.yaml")
    everything = gcp_quotas.allowed(
        "p", "r", get=lambda path: quotas(GPUS_ALL_REGIONS=1, NVIDIA_L4_GPUS=1, N2_CPUS=8)
    )
    plan = plan_cluster(file, allowed=everything)
    [spot] = [q for q in plan.quotas if (q.family, q.market) == ("NVIDIA_L4_GPUS", "spot")]
    assert (spot.unit, spot.allowed) == ("GPUs", 1)
    assert spot.ask_for == spot.needed - 1 > 0
    [all_gpus] = [q for q in plan.quotas if q.family == "GPUS_ALL_REGIONS"]
    assert all_gpus.needed >= spot.needed
    text = render(plan)
    assert (
        f"quota NVIDIA_L4_GPUS spot: {spot.needed} GPUs at max, the account has 1, ask for" in text
    )


@pytest.mark.parametrize("name", ["gcp", "azure"])
def test_without_credentials_a_plan_says_where_to_look(monkeypatch, tmp_path, name):
    for variable in ("GOOGLE_APPLICATION_CREDENTIALS", "AZURE_CLIENT_ID"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("AZURE_CONFIG_DIR", str(tmp_path))
    said = account.allowed(read_spec(str(SPECS / f"{name}.yaml")).spec)
    assert said.found is None
    assert f"no {'GCP' if name == 'gcp' else 'Azure'} credentials here; look under" in said.why_not


@pytest.mark.parametrize("name", ["gcp", "azure"])
def test_with_credentials_the_account_of_the_spec_is_asked(monkeypatch, name):
    spec = read_spec(str(SPECS / f"{name}.yaml")).spec
    module, asked = {"gcp": gcp_quotas, "azure": azure_quotas}[name], []

    def allowed(*whose):
        asked.append(whose)
        raise AuthRefused("refused", "log in")

    monkeypatch.setattr(module, "has_credentials", lambda: True)
    monkeypatch.setattr(module, "allowed", allowed)
    assert account.allowed(spec).why_not.startswith("refused; look under")
    cloud = spec.cloud.gcp or spec.cloud.azure
    assert asked == [tuple(cloud.model_dump().values())[:2]]


def test_a_file_of_credentials_counts(monkeypatch, tmp_path):
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.delenv("AZURE_CLIENT_ID", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("AZURE_CONFIG_DIR", str(tmp_path))
    assert not gcp_quotas.has_credentials()
    assert not azure_quotas.has_credentials()
    (tmp_path / "application_default_credentials.json").touch()
    (tmp_path / "azureProfile.json").touch()
    assert gcp_quotas.has_credentials()
    assert azure_quotas.has_credentials()
