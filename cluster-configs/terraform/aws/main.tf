# What must exist before `ray up`: a bucket, two roles, a security group, a budget alarm.

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0"
    }
  }
}

provider "aws" {
  region = var.region
}

data "aws_caller_identity" "this" {}

locals {
  account   = data.aws_caller_identity.this.account_id
  instances = "arn:aws:ec2:${var.region}:${local.account}:instance/*"
  tags      = { "sundog:cluster" = var.cluster }
}

# The storage root.

resource "aws_s3_bucket" "root" {
  bucket = var.bucket
  tags   = local.tags
}

resource "aws_s3_bucket_public_access_block" "root" {
  bucket                  = aws_s3_bucket.root.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_server_side_encryption_configuration" "root" {
  bucket = aws_s3_bucket.root.id
  rule {
    apply_server_side_encryption_by_default {
      sse_algorithm = "aws:kms"
    }
  }
}

resource "aws_s3_bucket_versioning" "root" {
  bucket = aws_s3_bucket.root.id
  versioning_configuration {
    status = "Enabled"
  }
}

# The security group: everything among its own nodes, SSH from named networks, nothing else.

resource "aws_security_group" "nodes" {
  name        = "sundog-${var.cluster}"
  description = "Nodes of the Sundog cluster ${var.cluster}"
  vpc_id      = var.vpc_id
  tags        = local.tags
}

resource "aws_vpc_security_group_ingress_rule" "inside" {
  security_group_id            = aws_security_group.nodes.id
  referenced_security_group_id = aws_security_group.nodes.id
  ip_protocol                  = "-1"
  description                  = "traffic between the cluster's own nodes"
}

resource "aws_vpc_security_group_ingress_rule" "ssh" {
  for_each          = toset(var.ssh_open_to)
  security_group_id = aws_security_group.nodes.id
  cidr_ipv4         = each.value
  from_port         = 22
  to_port           = 22
  ip_protocol       = "tcp"
  description       = "SSH"
}

# EFA traffic leaves only by a rule that names the group itself.
resource "aws_vpc_security_group_egress_rule" "inside" {
  security_group_id            = aws_security_group.nodes.id
  referenced_security_group_id = aws_security_group.nodes.id
  ip_protocol                  = "-1"
  description                  = "traffic between the cluster's own nodes"
}

resource "aws_vpc_security_group_egress_rule" "out" {
  security_group_id = aws_security_group.nodes.id
  cidr_ipv4         = "0.0.0.0/0"
  ip_protocol       = "-1"
}

# An alarm, because a budget in a spec stops launches and this one hears about everything else too.
# It counts only once `sundog:cluster` is active as a cost allocation tag, which AWS lets nobody do
# before the tag has been in use for a day: docs/clusters.md says when and where.

resource "aws_budgets_budget" "monthly" {
  name         = "sundog-${var.cluster}"
  budget_type  = "COST"
  limit_amount = tostring(var.budget_usd_month)
  limit_unit   = "USD"
  time_unit    = "MONTHLY"

  cost_filter {
    name   = "TagKeyValue"
    values = ["user:sundog:cluster$${var.cluster}"]
  }

  dynamic "notification" {
    for_each = [
      { threshold = 80, type = "ACTUAL" },
      { threshold = 100, type = "ACTUAL" },
      { threshold = 100, type = "FORECASTED" },
    ]
    content {
      comparison_operator        = "GREATER_THAN"
      threshold                  = notification.value.threshold
      threshold_type             = "PERCENTAGE"
      notification_type          = notification.value.type
      subscriber_email_addresses = [var.alarm_email]
    }
  }
}
