"""docs/openapi.json is valid, and what the fleet answers through Envoy is what it says."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.mesh.proxy import Proxy
from tests.mesh.rest import ask
from tests.mesh.test_rest import REQUEST, watched
from tools.openapi import ROOT

DOCUMENT: dict[str, Any] = json.loads((ROOT / "docs/openapi.json").read_text())


def test_it_is_valid() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def strict() -> dict[str, Any]:
    """The schemas, refusing what they don't name."""
    schemas: dict[str, Any] = json.loads(json.dumps(DOCUMENT["components"]["schemas"]))
    for schema in schemas.values():
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
    return schemas


def check(answer: Any, path: str, verb: str, status: str = "200") -> None:
    """Raise where an answer isn't what the document promises for it."""
    content = DOCUMENT["paths"][path][verb]["responses"][status]["content"]
    schema = {**content["application/json"]["schema"], "components": {"schemas": strict()}}
    jsonschema.Draft202012Validator(schema).validate(answer)


def test_answers_are_what_it_says(proxy: Proxy) -> None:
    made = ask(proxy.address, "POST", "/v1/jobs", {"request": REQUEST}).json
    check(made, "/v1/jobs", "post")
    job_id = made["job"]["job_id"]
    updates = watched(proxy, job_id, "*/*")[1]
    for update in updates:
        check(update, "/v1/jobs/{job_id}:watch", "get")
    check(ask(proxy.address, "GET", f"/v1/jobs/{job_id}").json, "/v1/jobs/{job_id}", "get")
    check(ask(proxy.address, "GET", "/v1/jobs").json, "/v1/jobs", "get")
    check(ask(proxy.address, "POST", f"/v1/jobs/{job_id}:cancel", {}).json, "/v1/jobs/{job_id}:cancel", "post")
    check(ask(proxy.address, "GET", "/v1/model").json, "/v1/model", "get")
    check(ask(proxy.address, "GET", "/v1/fleet").json, "/v1/fleet", "get")
    upload = ask(proxy.address, "POST", "/v1/uploads", b"x").json
    check(upload, "/v1/uploads", "post")
    here = f"/v1/uploads/{upload['upload']['upload_id']}"
    check(ask(proxy.address, "GET", here).json, "/v1/uploads/{upload_id}", "get")
    check(ask(proxy.address, "DELETE", here).json, "/v1/uploads/{upload_id}", "delete")
    check(ask(proxy.address, "GET", "/v1/jobs/nobody").json, "/v1/jobs/{job_id}", "get", "default")


def test_a_wrong_answer_would_be_seen(proxy: Proxy) -> None:
    made = ask(proxy.address, "POST", "/v1/jobs", {"request": REQUEST}).json
    made["job"]["stepp"] = 3
    with pytest.raises(jsonschema.ValidationError, match="stepp"):
        check(made, "/v1/jobs", "post")
