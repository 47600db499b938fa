"""No index of runs: their records are in the storage root, which control need not be there for."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.drop_table("runs")


def downgrade() -> None:
    raise NotImplementedError("the store only goes forward; an older Sundog refuses a newer store")
