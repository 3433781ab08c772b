"""Other Serve applications, as the ingress asks them: through a handle, which knows their replicas."""
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import asyncio
from collections.abc import AsyncGenerator, Callable, Collection
from functools import cached_property
from typing import Any

from ray import serve
from ray.exceptions import RayActorError

from cluster.core.background import in_loop
from serving.core.errors import GoneError

_TRIES = 3


class Applications:
    """Those that an ingress asks, each made when it is first asked for."""

    def __init__(self, make: "Callable[[str], Application]") -> None:
        self._make = make
        self._known: dict[str, Application] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def get(self, name: str) -> "Application":
        if name not in self._known:
            self._known[name] = self._make(name)
        return self._known[name]

    def keep(self, names: Collection[str], last_s: float) -> None:
        """Lets go of all others after last_s, when what they were asked has been answered. Needs a running event loop.

        Each goes on hearing of its replicas otherwise, also where Serve has ended it long ago.
        """
        for gone in [self._known.pop(name) for name in set(self._known) - set(names)]:
            task = in_loop(_close(gone, last_s), "the closing of an application's handle")
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


async def _close(gone: "Application", after_s: float) -> None:
    await asyncio.sleep(after_s)
    await gone.close()


class Application:
    """One of them. It may not be there yet, or no more."""

    def __init__(self, name: str, deployment: str) -> None:
        self._name, self._deployment = name, deployment

    @cached_property
    def _handle(self) -> Any:
        """Needs a running event loop. From then on it is told of replicas: `options` sees to that."""
        return serve.get_deployment_handle(self._deployment, self._name, _check_exists=False).options()

    async def ask(self, method: str, *arguments: object, model: str = "") -> Any:
        """What a replica answers. model: one that has it loaded is asked, if there is one. Raises: GoneError."""
        for _ in range(_TRIES):
            coming = self._handle.options(method_name=method, multiplexed_model_id=model).remote(*arguments)
            try:
                return await coming
            except RayActorError:
                continue  # it died meanwhile: another one answers the same
            except asyncio.CancelledError:
                coming.cancel()
                raise
        raise GoneError(f"{_TRIES} replicas died with this request")

    async def close(self) -> None:
        """Ends what hears of its replicas."""
        if "_handle" in self.__dict__:
            await self._handle.shutdown_async()

    async def stream(self, method: str, *arguments: object, model: str = "") -> AsyncGenerator[Any]:
        """What one replica answers piece by piece. model: as for `ask`. Raises: GoneError."""
        coming = self._handle.options(method_name=method, stream=True,
                                      multiplexed_model_id=model).remote(*arguments)
        try:
            async for found in coming:
                yield found
        except RayActorError:
            raise GoneError("the replica died with this request") from None
        finally:
            coming.cancel()

    def replicas(self) -> list[Collection[str]]:
        """Of each one that runs, the models that it has loaded on demand.
        The handle is told of them, so nobody is asked."""
        router = self._handle._router._asyncio_router.request_router  # there is no public way to it
        return [replica.multiplexed_model_ids
                for replica in router.curr_replicas.values()] if router is not None else []
