"""What the commands use of Ray Serve that is private.
Read in Ray 2.60.0; tests/unit/test_internals.py holds each symbol."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportPrivateUsage=false

from typing import Any


def started(schema: Any) -> Any:
    """The client of a Serve that listens as a ServeDeploySchema says;
    `serve deploy` asks a dashboard for it, of which there may be none."""
    from ray.serve._private.api import serve_start

    return serve_start(http_options=schema.http_options.model_dump(), grpc_options=schema.grpc_options.model_dump(),
                       proxy_location=schema.proxy_location, global_logging_config=schema.logging_config)


def client() -> Any:
    """Serve's own client of the connected cluster, None where Serve does not run.
    `serve.status` says neither port nor replicas."""
    from ray.serve.context import _get_global_client

    return _get_global_client(raise_if_no_controller_running=False)
