"""The only home of compute and price SDKs. Each cloud is imported by name, when it is used."""
