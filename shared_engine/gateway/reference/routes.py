"""The route of the description."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shared_engine.gateway.catalog import Catalog
from shared_engine.gateway.reference.openapi import document
from shared_engine.gateway.reference.operations import OPERATIONS


def routes(catalog: Catalog) -> list[Route]:
    """All of them."""

    async def openapi(_: Request) -> Response:
        return JSONResponse(document(OPERATIONS, has_keys=bool(catalog.config.keys)))

    return [Route("/openapi.json", openapi, methods=["GET"])]
