"""What Trainyard asks of Kubernetes: a RayJob, its pods, and why one of them does not start."""
