"""`GET /v1/models[/NAME]`: the models that OpenAI's clients may ask, and which of them does what is asked for."""

from jobs.common.artifact.manifest import NO_EMBEDDINGS
from serving.core.errors import UnknownModelError
from serving.core.settings import ModelSettings
from serving.text.openai_protocol import Model, ModelList
from serving.traffic.routing import Route, Table


def is_listed(settings: ModelSettings) -> bool:
    return settings.generates or settings.embeds


def writing(table: Table, name: str) -> Route:
    """Of a model that writes text. Raises: UnknownModelError."""
    route = _route(table, name)
    if not route.settings.generates:
        raise _unknown(f"model {name!r} writes no text: see /v2/models/{name}")
    return route


def embedding(table: Table, name: str) -> Route:
    """Of a model that offers embeddings. Raises: UnknownModelError."""
    route = _route(table, name)
    if not route.settings.embeds:
        raise _unknown(f"model {name!r} {NO_EMBEDDINGS}")
    return route


def listed(table: Table, name: str) -> Route:
    """Of any model that is listed. Raises: UnknownModelError."""
    route = _route(table, name)
    if not is_listed(route.settings):
        raise _unknown(f"model {name!r} neither writes text nor offers embeddings: see /v2/models/{name}")
    return route


def _route(table: Table, name: str) -> Route:
    try:
        return table.route(name, None)
    except UnknownModelError as error:
        error.param = "model"
        raise


def _unknown(message: str) -> UnknownModelError:
    error = UnknownModelError(message)
    error.param = "model"
    return error


async def model_list(table: Table) -> ModelList:
    routes = [route for name in table.names if is_listed((route := table.route(name, None)).settings)]
    return {"object": "list", "data": [await model(route) for route in routes]}


async def model(route: Route) -> Model:
    about = await route.about()
    return {"id": route.settings.name, "object": "model", "created": route.since, "owned_by": "trainyard",
            "max_model_len": about["max_tokens"], "version": route.settings.version,
            "artifact_digest": route.settings.digest}
