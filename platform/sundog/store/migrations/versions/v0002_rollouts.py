"""Rollouts with their evidence, and what the scaling decider remembers."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "rollouts",
        sa.Column("service", sa.String(63), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("phase", sa.String(31), nullable=False, index=True),
        sa.Column("document", sa.JSON, nullable=False),
        sa.Column("updated_s", sa.Float, nullable=False),
    )
    op.create_table(
        "scaling",
        sa.Column("service", sa.String(63), primary_key=True),
        sa.Column("version", sa.String(31), primary_key=True),
        sa.Column("state", sa.JSON, nullable=False),
        sa.Column("updated_s", sa.Float, nullable=False),
    )


def downgrade() -> None:
    raise NotImplementedError("the store only goes forward; an older Sundog refuses a newer store")
