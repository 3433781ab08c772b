"""The MLP behind other servers, as their users would write it: what `serving` is compared with.

    python -m tests.benchmarks.peer_servers fastapi|litserve ARTIFACT PORT
"""

import sys
from typing import Any

import litserve as lit
import numpy as np

from jobs.mlp.model import load


def rows_of(body: dict[str, Any]) -> Any:
    tensor = body["inputs"][0]
    return np.asarray(tensor["data"], np.uint8).reshape(tensor["shape"])


def fastapi(artifact: str, port: int) -> None:
    import torch
    import uvicorn
    from fastapi import FastAPI, Request

    torch.set_num_threads(1)
    model, app = load(artifact), FastAPI()

    @app.post("/infer")
    async def infer(request: Request) -> dict[str, Any]:
        return {"outputs": model.predict(rows_of(await request.json())).tolist()}

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


class Api(lit.LitAPI):
    def setup(self, device: Any) -> None:
        import torch

        torch.set_num_threads(1)
        self.model = load(sys.argv[2])

    def decode_request(self, request, **_):  # LitServe takes an annotation for the type of a query parameter
        return rows_of(request)

    def predict(self, x, **_):
        return self.model.predict(x)

    def encode_response(self, output, **_):
        return {"outputs": output.tolist()}


def litserve(artifact: str, port: int) -> None:
    server = lit.LitServer(Api(api_path="/infer"), accelerator="cpu")
    server.run(host="127.0.0.1", port=port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    {"fastapi": fastapi, "litserve": litserve}[sys.argv[1]](sys.argv[2], int(sys.argv[3]))
