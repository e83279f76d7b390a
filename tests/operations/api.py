"""The OpenAPI document: validated, and the API called by it with what it allows and with what it does not."""

import json
import subprocess
import sys

from gateway import API_TOKEN, PROJECT, environment


def check_document(gateway, folder):
    status, document = gateway.get("/api/v1/openapi.json")
    assert status == 200, status
    path = folder / "openapi.json"
    path.write_text(document)
    validated = subprocess.run(
        [sys.executable, "-m", "openapi_spec_validator", "--validation-errors", "all", path],
        capture_output=True,
        text=True,
        check=False,
    )
    if validated.returncode != 0:
        raise SystemExit(f"the OpenAPI document is invalid:\n{validated.stdout}{validated.stderr}")
    parsed = json.loads(document)
    print(f"openapi-spec-validator: OpenAPI {parsed['openapi']}, {len(parsed['paths'])} paths, valid")


def check_behaviour(gateway, folder):
    """Schemathesis: responses are those of the document, what violates it is refused, and nothing without the token."""
    subprocess.run(
        [
            *[sys.executable, "-m", "schemathesis.cli"],
            *["--config-file", PROJECT / "tests/operations/schemathesis.toml", "run"],
            *[f"{gateway.url}/api/v1/openapi.json", "--header", f"Authorization: Bearer {API_TOKEN}", "--no-color"],
        ],
        check=True,
        cwd=folder,
        env=environment(),
    )
