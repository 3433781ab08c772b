"""The ingress: HTTP, gRPC, pages and keys, in front of the models."""
