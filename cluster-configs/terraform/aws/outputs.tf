output "root" {
  value       = "s3://${aws_s3_bucket.root.id}"
  description = "`root:` of the spec"
}

output "security_group" {
  value       = aws_security_group.nodes.id
  description = "`network: {security_group: …}` of the spec"
}

output "join_policy" {
  value       = aws_iam_policy.join.arn
  description = "attach it to whoever may `sundog cluster join`"
}

output "up_policy" {
  value       = aws_iam_policy.up.arn
  description = "attach it to whoever runs `sundog cluster up`"
}
