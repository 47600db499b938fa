# Least privilege. The head buys and ends only instances that carry the cluster's tag; a worker only
# reads and writes the storage root. Both can be reached through Session Manager.

data "aws_iam_policy_document" "ec2" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "root" {
  statement {
    sid       = "ListTheRoot"
    actions   = ["s3:ListBucket", "s3:ListBucketMultipartUploads"]
    resources = [aws_s3_bucket.root.arn]
  }

  statement {
    sid = "UseTheRoot"
    actions = [
      "s3:GetObject", "s3:PutObject", "s3:DeleteObject",
      "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts",
    ]
    resources = ["${aws_s3_bucket.root.arn}/*"]
  }
}

data "aws_iam_policy_document" "head" {
  # Describe calls cannot be limited to resources.
  statement {
    sid = "Look"
    actions = [
      "ec2:DescribeInstances", "ec2:DescribeInstanceTypes", "ec2:DescribeSubnets",
      "ec2:DescribeSpotPriceHistory", "ec2:DescribeAvailabilityZones",
    ]
    resources = ["*"]
  }

  # A launch must carry the cluster's tag from the start.
  statement {
    sid       = "LaunchTagged"
    actions   = ["ec2:RunInstances"]
    resources = [local.instances, "arn:aws:ec2:${var.region}:${local.account}:volume/*"]
    condition {
      test     = "StringEquals"
      variable = "aws:RequestTag/ray-cluster-name"
      values   = [var.cluster]
    }
  }

  statement {
    sid     = "LaunchFrom"
    actions = ["ec2:RunInstances"]
    resources = [
      "arn:aws:ec2:${var.region}::image/*",
      "arn:aws:ec2:${var.region}:${local.account}:subnet/*",
      "arn:aws:ec2:${var.region}:${local.account}:security-group/*",
      "arn:aws:ec2:${var.region}:${local.account}:network-interface/*",
      "arn:aws:ec2:${var.region}:${local.account}:key-pair/*",
      "arn:aws:ec2:${var.region}:${local.account}:placement-group/*",
      "arn:aws:ec2:${var.region}:${local.account}:spot-instances-request/*",
    ]
  }

  statement {
    sid       = "TagAtLaunch"
    actions   = ["ec2:CreateTags"]
    resources = [local.instances, "arn:aws:ec2:${var.region}:${local.account}:volume/*"]
    condition {
      test     = "StringEquals"
      variable = "ec2:CreateAction"
      values   = ["RunInstances"]
    }
  }

  statement {
    sid       = "TouchOnlyTheClusters"
    actions   = ["ec2:TerminateInstances", "ec2:CreateTags"]
    resources = [local.instances]
    condition {
      test     = "StringEquals"
      variable = "ec2:ResourceTag/ray-cluster-name"
      values   = [var.cluster]
    }
  }

  # The default image is AWS's own, named by a public parameter that EC2 looks up at each launch.
  statement {
    sid       = "FindTheImage"
    actions   = ["ssm:GetParameters"]
    resources = ["arn:aws:ssm:${var.region}::parameter/aws/service/deeplearning/*"]
  }

  # Without this a new account cannot launch its first spot instance.
  statement {
    sid       = "SpotServiceRole"
    actions   = ["iam:CreateServiceLinkedRole"]
    resources = ["arn:aws:iam::${local.account}:role/aws-service-role/spot.amazonaws.com/*"]
    condition {
      test     = "StringEquals"
      variable = "iam:AWSServiceName"
      values   = ["spot.amazonaws.com"]
    }
  }

  statement {
    sid       = "GiveWorkersTheirRole"
    actions   = ["iam:PassRole"]
    resources = [aws_iam_role.node.arn]
  }
}

resource "aws_iam_role" "head" {
  name               = "sundog-head-${var.cluster}"
  assume_role_policy = data.aws_iam_policy_document.ec2.json
  tags               = local.tags
}

resource "aws_iam_role" "node" {
  name               = "sundog-node-${var.cluster}"
  assume_role_policy = data.aws_iam_policy_document.ec2.json
  tags               = local.tags
}

resource "aws_iam_role_policy" "head" {
  name   = "capacity"
  role   = aws_iam_role.head.id
  policy = data.aws_iam_policy_document.head.json
}

resource "aws_iam_role_policy" "root" {
  for_each = { head = aws_iam_role.head.id, node = aws_iam_role.node.id }
  name     = "storage-root"
  role     = each.value
  policy   = data.aws_iam_policy_document.root.json
}

resource "aws_iam_role_policy_attachment" "sessions" {
  for_each   = { head = aws_iam_role.head.name, node = aws_iam_role.node.name }
  role       = each.value
  policy_arn = "arn:aws:iam::aws:policy/AmazonSSMManagedInstanceCore"
}

resource "aws_iam_instance_profile" "head" {
  name = "sundog-head-${var.cluster}"
  role = aws_iam_role.head.name
}

resource "aws_iam_instance_profile" "node" {
  name = "sundog-node-${var.cluster}"
  role = aws_iam_role.node.name
}

# For colleagues who `sundog cluster join`: SSH by their own identity, into this cluster only.
data "aws_iam_policy_document" "join" {
  statement {
    sid       = "FindTheHead"
    actions   = ["ec2:DescribeInstances"]
    resources = ["*"]
  }

  statement {
    sid       = "ConnectToTheClusters"
    actions   = ["ec2-instance-connect:SendSSHPublicKey", "ssm:StartSession"]
    resources = [local.instances]
    condition {
      test     = "StringEquals"
      variable = "aws:ResourceTag/ray-cluster-name"
      values   = [var.cluster]
    }
  }

  statement {
    sid       = "ThroughSessionManager"
    actions   = ["ssm:StartSession"]
    resources = ["arn:aws:ssm:${var.region}::document/AWS-StartSSHSession"]
  }
}

resource "aws_iam_policy" "join" {
  name   = "sundog-join-${var.cluster}"
  policy = data.aws_iam_policy_document.join.json
  tags   = local.tags
}

# For whoever runs `sundog cluster up`: what the head may, and what must be there before it.
data "aws_iam_policy_document" "up" {
  source_policy_documents = [data.aws_iam_policy_document.head.json]

  # Making and describing these cannot be limited to resources that are not there yet.
  statement {
    sid = "PrepareTheNetwork"
    actions = [
      "ec2:DescribeVpcs", "ec2:DescribeSecurityGroups", "ec2:DescribeKeyPairs",
      "ec2:DescribePlacementGroups", "ec2:CreateSecurityGroup", "ec2:CreateKeyPair",
      "ec2:CreatePlacementGroup",
    ]
    resources = ["*"]
  }

  statement {
    sid     = "TagWhatIsMade"
    actions = ["ec2:CreateTags"]
    resources = [
      "arn:aws:ec2:${var.region}:${local.account}:security-group/*",
      "arn:aws:ec2:${var.region}:${local.account}:placement-group/*",
    ]
    condition {
      test     = "StringEquals"
      variable = "ec2:CreateAction"
      values   = ["CreateSecurityGroup", "CreatePlacementGroup"]
    }
  }

  statement {
    sid = "SetTheRulesOfTheClustersGroup"
    actions = [
      "ec2:AuthorizeSecurityGroupIngress", "ec2:AuthorizeSecurityGroupEgress",
      "ec2:RevokeSecurityGroupIngress",
    ]
    resources = ["arn:aws:ec2:${var.region}:${local.account}:security-group/*"]
    condition {
      test     = "StringEquals"
      variable = "ec2:ResourceTag/sundog:cluster"
      values   = [var.cluster]
    }
  }

  statement {
    sid       = "GiveTheHeadItsRole"
    actions   = ["iam:PassRole"]
    resources = [aws_iam_role.head.arn]
  }

  statement {
    sid       = "SshThroughSessionManager"
    actions   = ["ssm:StartSession"]
    resources = [local.instances]
    condition {
      test     = "StringEquals"
      variable = "ssm:resourceTag/ray-cluster-name"
      values   = [var.cluster]
    }
  }

  statement {
    sid       = "SshDocument"
    actions   = ["ssm:StartSession"]
    resources = ["arn:aws:ssm:${var.region}::document/AWS-StartSSHSession"]
  }

  statement {
    sid       = "QuotasAndPrices"
    actions   = ["servicequotas:GetServiceQuota", "pricing:GetProducts"]
    resources = ["*"]
  }
}

resource "aws_iam_policy" "up" {
  name   = "sundog-up-${var.cluster}"
  policy = data.aws_iam_policy_document.up.json
  tags   = local.tags
}
