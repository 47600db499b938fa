variable "region" {
  type        = string
  description = "Region of the cluster, as in the spec"
}

variable "cluster" {
  type        = string
  description = "Name of the cluster, as in the spec: the roles touch only what carries it as a tag"
}

variable "bucket" {
  type        = string
  description = "Name of the storage root's bucket, unique in all of S3"
}

variable "budget_usd_month" {
  type        = number
  description = "An alarm goes out at 80% and 100% of it, and when the forecast passes it"
}

variable "alarm_email" {
  type        = string
  description = "Who gets the budget alarm"
}

variable "vpc_id" {
  type        = string
  description = "VPC of the cluster's security group"
}

variable "ssh_open_to" {
  type        = list(string)
  default     = []
  description = "Networks that may use SSH; none when you reach nodes through Session Manager"

  validation {
    condition     = !contains(var.ssh_open_to, "0.0.0.0/0")
    error_message = "SSH to the whole internet is refused here; name your network."
  }
}
