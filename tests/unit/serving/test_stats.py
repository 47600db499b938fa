"""Counting: the protocol's statistics, Prometheus text, the access log."""

import orjson

from sundog.clock import WALL
from sundog.serving.access_log import AccessLog
from sundog.serving.stats import LaneStats, Metrics


def test_statistics_of_a_version():
    stats = LaneStats()
    stats.executed(3, 0.5)
    stats.executed(3, 0.25)
    stats.executed(1, 0.25)
    stats.rows, stats.success_count = 7, 4
    document = stats.document("digits", "2")
    assert abs(document["last_inference"] / 1000 - WALL.now_s()) < 3600
    assert (document["inference_count"], document["execution_count"]) == (7, 3)
    assert document["inference_stats"]["compute_infer"] == {"count": 3, "ns": 10**9}
    assert [b["batch_size"] for b in document["batch_stats"]] == [1, 3]


def test_prometheus_text_counts_and_escapes():
    metrics = Metrics()
    metrics.count("a", "1", "k", 200, 0.003)
    metrics.count("a", "1", "k", 200, 99.0)
    metrics.count('we"ird\n', "1", "", 500, 1.0)
    stats = LaneStats()
    stats.first_part(0.2)
    gauges = [("a", "1", {"sundog_gateway_queued": 4})]
    text = metrics.text(gauges, [("a", "1", stats.first)])
    assert 'sundog_gateway_first_part_seconds_bucket{service="a",version="1",le="0.25"} 1' in text
    assert 'sundog_gateway_first_part_seconds_sum{service="a",version="1"} 0.2' in text
    assert 'sundog_gateway_requests_total{service="a",version="1",key="k",status="200"} 2' in text
    assert 'service="we\\"ird\\n"' in text
    assert 'sundog_gateway_latency_seconds_bucket{service="a",version="1",le="0.005"} 1' in text
    assert 'sundog_gateway_latency_seconds_bucket{service="a",version="1",le="+Inf"} 2' in text
    assert 'sundog_gateway_latency_seconds_count{service="a",version="1"} 2' in text
    assert 'sundog_gateway_queued{service="a",version="1"} 4' in text


def test_the_access_log_is_json_lines_and_is_turned_over(tmp_path):
    path = tmp_path / "access.jsonl"
    log = AccessLog(path, max_bytes=50)
    for i in range(3):
        log.add({"i": i, "text": "x" * 30})
        log.flush()
    lines = [*path.with_suffix(".1").read_text().splitlines()]
    lines += path.read_text().splitlines() if path.exists() else []
    assert [orjson.loads(line)["i"] for line in lines][-1] == 2
    assert not AccessLog(None).flush()


def test_a_disk_that_refuses_costs_lines_only_and_is_said_once(tmp_path, caplog):
    folder = tmp_path / "gone"
    log = AccessLog(folder / "access.jsonl")
    for _ in range(2):
        log.add({})
        log.flush()
    assert log.lost == 2
    assert "sundog_gateway_access_log_lost_total 2" in log.text()
    [record] = caplog.records
    assert str(folder) in record.getMessage()
    assert "SUNDOG_ACCESS_LOG" in record.getMessage()
    folder.mkdir()
    log.add({})
    log.flush()
    assert (folder / "access.jsonl").read_text() == "{}\n"
    assert log.lost == 2
    (folder / "access.jsonl").unlink()
    folder.rmdir()
    log.add({})
    log.flush()
    assert len(caplog.records) == 2, "it failed anew"


def test_sizes_of_calls_are_so_many_series_at_most():
    stats = LaneStats()
    for rows in range(100_000):
        stats.executed(rows, 0.001)
    assert len(stats.batches) < 300
    counted = stats.document("s", "1")["batch_stats"]
    assert sum(b["compute_infer"]["count"] for b in counted) == 100_000
    assert all(b["batch_size"] <= 2**17 for b in counted)


def test_refusals_are_counted_by_key_and_subjects_of_tokens_share_one(tmp_path):
    metrics = Metrics()
    metrics.refused("a", "k", 429)
    metrics.refused("a", "jwt:ann", 403)
    metrics.refused("a", "jwt:bob", 403)
    text = metrics.text([])
    assert 'sundog_gateway_refused_total{service="a",key="k",status="429"} 1' in text
    assert 'sundog_gateway_refused_total{service="a",key="jwt",status="403"} 2' in text


def test_latency_is_that_of_answers():
    metrics = Metrics()
    for status in (200, 201, 404, 500, 503):
        metrics.count("a", "1", "k", status, 0.003)
    assert 'latency_seconds_count{service="a",version="1"} 2' in metrics.text([])
