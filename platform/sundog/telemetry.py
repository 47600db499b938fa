"""Every metric, span and event name, in one place, so that dashboards and code cannot drift apart.

Holds names only. Who counts or exports is said where the counting happens.
"""

from __future__ import annotations

from typing import Final

# Events of a run (`runs/<run_id>/events.jsonl`, key "event").
RUN_STARTED: Final = "run.started"
RUN_RESUMED: Final = "run.resumed"
RUN_PROGRESS: Final = "run.progress"
RUN_CHECKPOINT: Final = "run.checkpoint"
RUN_CHECKPOINT_SKIPPED: Final = "run.checkpoint_skipped"
RUN_CHECKPOINT_STAGED: Final = "run.checkpoint_staged"
RUN_RECOVERED: Final = "run.recovered"
RUN_RESIZED: Final = "run.resized"
RUN_NOTICE: Final = "run.notice"
RUN_DRAINED: Final = "run.drained"
RUN_LINKS: Final = "run.links"
RUN_BEST: Final = "run.best"
RUN_REGISTERED: Final = "run.registered"
RUN_FINISHED: Final = "run.finished"
RUN_FAILED: Final = "run.failed"
RUN_CANCELLED: Final = "run.cancelled"
TRIAL_FINISHED: Final = "trial.finished"

# Gauges of a run, through Ray's metrics (Prometheus puts `ray_` in front): field of a point of its
# curve -> name, what it is. RUN_METRIC has the validation metrics, by name.
RUN_GAUGES: Final = {
    "step": ("sundog_run_step", "Steps done."),
    "loss": ("sundog_run_loss", "Loss of the last step."),
    "samples_s": ("sundog_run_samples_per_second", "Samples a second."),
    "workers": ("sundog_run_workers", "Workers in the group; 0 when the run has ended."),
    "goodput": ("sundog_run_goodput", "Useful share of the node-seconds so far."),
    "mfu": (
        "sundog_run_mfu",
        "Share of the devices' peak, where it and the model's FLOPs are known.",
    ),
    "stall_s": (
        "sundog_run_checkpoint_stall_seconds",
        "Seconds that steps have waited for checkpoints so far.",
    ),
    "usd": ("sundog_run_dollars", "Cost so far, where nodes have prices."),
}
RUN_METRIC: Final = "sundog_run_metric"

# Metrics of the gateway (Prometheus names).
GATEWAY_REQUESTS: Final = "sundog_gateway_requests_total"
GATEWAY_REFUSED: Final = "sundog_gateway_refused_total"
GATEWAY_LATENCY_S: Final = "sundog_gateway_latency_seconds"
GATEWAY_FIRST_PART_S: Final = "sundog_gateway_first_part_seconds"
GATEWAY_TOKENS: Final = "sundog_gateway_tokens_total"
GATEWAY_CAPTURES: Final = "sundog_gateway_captures_total"
GATEWAY_LOG_LOST: Final = "sundog_gateway_access_log_lost_total"
GATEWAY_IN_FLIGHT: Final = "sundog_gateway_in_flight"
GATEWAY_QUEUED: Final = "sundog_gateway_queued"
GATEWAY_REPLICAS: Final = "sundog_gateway_replicas"
GATEWAY_BATCH: Final = "sundog_gateway_batch_rows"
GATEWAY_ROWS: Final = "sundog_gateway_rows"
GATEWAY_CALLS: Final = "sundog_gateway_model_calls"

# Events of services (the store's `events`, key "kind").
SERVICE_STATE: Final = "service.state"
SERVICE_ROUTED: Final = "service.routed"
SERVICE_REMOVED: Final = "service.removed"
SERVICE_SCALED: Final = "service.scaled"
ROLLOUT_STARTED: Final = "rollout.started"
ROLLOUT_MOVED: Final = "rollout.moved"
ROLLOUT_ENDED: Final = "rollout.ended"
KEY_CREATED: Final = "key.created"
KEY_ROTATED: Final = "key.rotated"
KEY_REVOKED: Final = "key.revoked"
KEY_DELETED: Final = "key.deleted"
