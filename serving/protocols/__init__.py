"""The Open Inference Protocol as JSON and as gRPC."""
