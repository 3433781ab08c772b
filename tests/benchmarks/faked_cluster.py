"""A control store that says it has as many nodes as one likes.
All of them are one server: it answers for each node's raylet too.

What is real: our own code, gRPC, the messages' sizes.
What is not: that a thousand machines answer one after the other, or not.
"""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

import json
import platform
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import ray


@contextmanager
def faked_cluster(num_nodes: int, cpus: float, *, busy: float = 0.0) -> Generator[str]:
    """HOST:PORT of a control store with so many live nodes; `busy` of each one's CPUs are taken."""
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_send_message_length", 256 << 20)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.add_generic_rpc_handlers((_Answers(_replies(num_nodes, cpus, busy, port)),))
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def _replies(num_nodes: int, cpus: float, busy: float, port: int) -> dict[str, Callable[[bytes], bytes]]:
    from ray.core.generated import autoscaler_pb2, gcs_pb2
    from ray.core.generated import gcs_service_pb2 as pb

    ids = [number.to_bytes(28, "big") for number in range(num_nodes)]
    total = {"CPU": cpus, "memory": 2.0**38, "object_store_memory": 2.0**36}
    nodes = pb.GetAllNodeInfoReply(node_info_list=[
        gcs_pb2.GcsNodeInfo(node_id=node, node_name=f"node-{number}", node_manager_address="127.0.0.1",
                            node_manager_port=port,
                            is_head_node=number == 0, resources_total=total) for number, node in enumerate(ids)])
    free = pb.GetAllAvailableResourcesReply(resources_list=[
        gcs_pb2.AvailableResources(node_id=node, resources_available=total | {"CPU": cpus - busy}) for node in ids])
    metadata = json.dumps({"ray_version": ray.__version__, "python_version": platform.python_version()}).encode()

    def value(request: bytes) -> bytes:
        known = {b"CLUSTER_METADATA": metadata, b"dashboard": f"127.0.0.1:{port}".encode()}
        return pb.InternalKVGetReply(value=known.get(pb.InternalKVGetRequest.FromString(request).key,
                                                     b"")).SerializeToString()

    fixed: dict[str, Any] = {
        "GetAllNodeInfo": nodes, "GetAllAvailableResources": free, "GetDrainingNodes": pb.GetDrainingNodesReply(),
        "GetAllJobInfo": pb.GetAllJobInfoReply(), "GetClusterStatus": autoscaler_pb2.GetClusterStatusReply(),
        "CheckAlive": pb.CheckAliveReply(ray_version=ray.__version__),
    }
    packed = {name: reply.SerializeToString() for name, reply in fixed.items()}
    return {"InternalKVGet": value, "Check": lambda _: b"",
            **{name: lambda _, text=text: text for name, text in packed.items()}}


class _Answers(grpc.GenericRpcHandler):
    def __init__(self, replies: dict[str, Callable[[bytes], bytes]]) -> None:
        self._replies = replies

    def service(self, handler_call_details: Any) -> Any:
        reply = self._replies.get(handler_call_details.method.rpartition("/")[2])
        return reply and grpc.unary_unary_rpc_method_handler(lambda request, context: reply(request))
