"""The endpoint over gRPC, in front of pipeline.py: the service `inference.GRPCInferenceService` on Serve's gRPC proxy.

Serve calls a method of the ingress by each call's name; which calls there are it is told by `add_to_server`. A key is
the metadata `authorization: Bearer KEY`.
"""

# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serving.core.errors import RefusedError
from serving.endpoint.pipeline import Request, RequestPipeline, joined
from serving.protocols import open_inference_grpc as messages

SERVICE = f"{messages.PACKAGE}.GRPCInferenceService"
METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
_OPEN = ("ServerLive", "ServerReady")


@dataclass(slots=True)
class Reply:
    """What goes back, to Serve, which takes a message's bytes from it."""

    message: Any
    status: int = 200
    streams = False

    @property
    def size(self) -> int:
        return self.message.ByteSize()

    def SerializeToString(self) -> bytes:  # noqa: N802
        return self.message.SerializeToString()


class Calls:
    """Of one ingress."""

    def __init__(self, core: RequestPipeline) -> None:
        self._core = core

    async def __call__(self, method: str, data: bytes, context: Any) -> Reply:
        """data: the message, as it came. context: Serve's, of the call."""
        request = Request(method="POST", path=f"/{SERVICE}/{method}", headers=_headers(context))
        trailer = [("x-request-id", request.id)]

        def refused(error: RefusedError) -> Reply:
            import grpc

            context.set_code(grpc.StatusCode[error.code])
            context.set_details(str(error))
            if error.retry_after_s is not None:
                trailer.append(("retry-after", str(max(1, round(error.retry_after_s + 0.5)))))
            return Reply(messages.message(f"{method}Response")(), error.status)

        reply = await self._core.attempt(request, self._answer(request, method, data), refused)
        context.set_trailing_metadata(trailer)
        return reply

    async def _answer(self, request: Request, method: str, data: bytes) -> Reply:
        if method not in _OPEN:
            await self._core.admit(request)
        request.size = len(data)
        asked = await self._core.read(request, messages.parsed, f"{method}Request", data)
        if method == "ModelInfer":
            return Reply(await self._infer(request, asked))
        return Reply(messages.message(f"{method}Response")(**await self._said(method, asked)))

    async def _said(self, method: str, asked: Any) -> Mapping[str, object]:
        """The fields of the answer."""
        table = self._core.table
        if method == "ServerLive":
            return {"live": True}
        if method == "ServerReady":
            return {"ready": table.is_ready()}
        if method == "ServerMetadata":
            return table.server()
        route = table.route(asked.name, asked.version or None)
        if method == "ModelReady":
            return {"ready": route.ready()}
        return await table.metadata(asked.name, route)

    async def _infer(self, request: Request, call: Any) -> Any:
        route = request.route = self._core.table.route(call.model_name, call.model_version or None)
        asked, outputs, about = await self._core.infer(request, route, lambda about: messages.parse_call(
            call, about["inputs"], about["outputs"], route.settings.max_batch_rows))
        return messages.answer_call(call, asked, outputs, about["outputs"], route.said)


def _headers(context: Any) -> dict[bytes, bytes]:
    return joined((name.encode(), value if isinstance(value, bytes) else value.encode())
                  for name, value in context.invocation_metadata())


def add_to_server(servicer: Any, server: Any) -> None:
    """What Serve is told to import, as it would be generated.
    Messages stay bytes: who has no key is not worth reading."""
    import grpc

    handlers = {method: grpc.unary_unary_rpc_method_handler(getattr(servicer, method)) for method in METHODS}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
