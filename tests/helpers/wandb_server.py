"""A W&B server on loopback for the real client: it answers what the client asks and keeps all that arrives."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

ENTITY = "team"
KEY = "0" * 40


@dataclass
class Run:
    """What arrived of a run, under its id: the fields of its creation, configuration, history by row, summary, files by name."""

    about: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None
    announced: int = 0  # times that a client announced it


class Server(http.server.ThreadingHTTPServer):
    """runs by id; artifacts and views (reports) in the order they came; operations: names of the GraphQL requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.RLock()
        self.runs: dict[str, Run] = {}
        self.artifacts: list[dict[str, Any]] = []
        self.views: dict[str, dict[str, Any]] = {}
        self.operations: list[str] = []
        self.unknown: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client has to find in its environment."""
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": KEY,
            "WANDB_MODE": "online",
            "WANDB_SILENT": "true",
        }

    def get_run(self, name: str) -> Run:
        return self.runs.setdefault(name, Run())


def _format_config(config: dict[str, Any]) -> str:
    return json.dumps({key: {"value": value} for key, value in config.items()})


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        with contextlib.suppress(ConnectionError):  # a client that has ended
            super().handle_one_request()

    def log_message(self, *_: object) -> None:
        pass

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send_answer(self, content: Any = None) -> None:
        body = json.dumps({} if content is None else content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._send_answer()

    def do_PUT(self) -> None:
        body = self._read_body()
        with self.server.lock:
            if found := re.fullmatch(r"/upload/([^/]+)/(.+)", self.path):
                self.server.get_run(unquote(found[1])).files[unquote(found[2])] = body
            elif found := re.fullmatch(r"/artifact/(\d+)/(.+)", self.path):
                self.server.artifacts[int(found[1])]["files"][unquote(found[2])] = body
        self._send_answer()

    def do_POST(self) -> None:
        body = self._read_body()
        found = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
        if not found and self.path != "/graphql":
            self._send_answer()  # the client's own telemetry
            return
        content = json.loads(
            gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        )
        with self.server.lock:
            if found:
                self._store_stream(self.server.get_run(unquote(found[1])), content)
            self._send_answer(
                {"exitcode": None, "limits": {}} if found else self._answer_query(content)
            )

    def _store_stream(self, run: Run, content: dict[str, Any]) -> None:
        """Lines of the run's streamed files, each put at the offset it is for; the end of the run."""
        files = content.get("files", {})
        history = files.get("wandb-history.jsonl", {"offset": 0, "content": []})
        run.history[history["offset"] :] = [
            json.loads(line) for line in history["content"]
        ] or run.history[history["offset"] :]
        for line in files.get("wandb-summary.json", {"content": []})["content"]:
            run.summary = json.loads(line)
        if content.get("complete"):
            run.exit_code = content.get("exitcode")

    def _answer_query(self, content: dict[str, Any]) -> dict[str, Any]:
        query, given = content["query"], content.get("variables") or {}
        found = re.search(r"\b(?:query|mutation)\s+(\w+)", query)
        name = found[1] if found else ""
        self.server.operations.append(name)
        answer = getattr(self, f"_{name[:1].lower()}{name[1:]}", None)
        if answer is None:
            self.server.unknown.append(query)
            return {"data": {}}
        return {"data": answer(**given)}

    # Queries of the account and the project.

    def _viewer(self) -> dict[str, Any]:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        return {
            "viewer": {
                "id": "user",
                "entity": ENTITY,
                "username": ENTITY,
                "email": "",
                "flags": "{}",
                "teams": teams,
            }
        }

    def _getDefaultEntity(self) -> dict[str, Any]:
        return {"viewer": {"id": "user", "entity": ENTITY}}

    def _serverFeaturesQuery(self) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    # Runs.

    def _runResumeStatus(self, name: str, **_: Any) -> dict[str, Any]:
        run, entity = self.server.runs.get(name), {"id": "entity", "name": ENTITY}
        bucket = None
        if run is not None:
            tail = json.dumps([json.dumps(row) for row in run.history[-1:]])
            bucket = {
                "id": name,
                "name": name,
                "displayName": run.about.get("displayName"),
                "summaryMetrics": json.dumps(run.summary),
            }
            bucket |= {
                "historyLineCount": len(run.history),
                "historyTail": tail,
                "config": _format_config(run.config),
            }
            bucket |= {
                "logLineCount": 0,
                "eventsLineCount": 0,
                "eventsTail": "[]",
                "tags": run.about.get("tags") or [],
                "notes": None,
            }
            bucket |= {"wandbConfig": json.dumps({"t": {"1": 1}})}
        return {"model": {"id": "project", "name": "project", "entity": entity, "bucket": bucket}}

    def _upsertBucket(self, name: str | None = None, **given: Any) -> dict[str, Any]:
        name = name or given["id"]
        inserted = name not in self.server.runs
        run = self.server.get_run(name)
        run.announced += 1
        run.config |= {
            key: entry["value"]
            for key, entry in json.loads(given.pop("config") or "{}").items()
            if "value" in entry
        }
        run.about |= {key: value for key, value in given.items() if value is not None}
        project = {
            "id": "project",
            "name": run.about["project"],
            "entity": {"id": "entity", "name": ENTITY},
        }
        bucket = {
            "id": name,
            "name": name,
            "displayName": run.about.get("displayName") or name,
            "description": None,
            "sweepName": None,
        }
        bucket |= {
            "config": _format_config(run.config),
            "project": project,
            "historyLineCount": len(run.history),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _createRunFiles(self, run: str, files: list[str], **_: Any) -> dict[str, Any]:
        urls = [
            {
                "name": file,
                "uploadUrl": f"{self.server.url}/upload/{quote(run, safe='')}/{quote(file)}",
            }
            for file in files
        ]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": urls}}

    # Artifacts.

    def _artifactType(self, **_: Any) -> dict[str, Any]:
        return {"project": None}

    def _createArtifact(self, input: dict[str, Any]) -> dict[str, Any]:
        self.server.artifacts.append({**input, "files": {}, "committed": False})
        artifact = {
            "id": str(len(self.server.artifacts) - 1),
            "state": "PENDING",
            "artifactSequence": {"latestArtifact": None},
        }
        return {"createArtifact": {"artifact": artifact}}

    def _createArtifactManifest(self, artifactID: str, name: str, **_: Any) -> dict[str, Any]:
        file = {
            "id": artifactID,
            "uploadUrl": f"{self.server.url}/artifact/{artifactID}/{name}",
            "uploadHeaders": [],
        }
        return {"createArtifactManifest": {"artifactManifest": {"id": artifactID, "file": file}}}

    def _updateArtifactManifest(self, artifactManifestID: str, **_: Any) -> dict[str, Any]:
        return {
            "updateArtifactManifest": self._createArtifactManifest(
                artifactManifestID, "wandb_manifest.json"
            )["createArtifactManifest"]
        }

    def _createArtifactFiles(self, input: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for spec in input["artifactFiles"]:
            artifact, name = spec["artifactID"], spec["name"]
            node = {
                "storagePath": f"{artifact}/{name}",
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "artifact": {"id": artifact},
            }
            edges.append(
                {
                    "node": node
                    | {"uploadUrl": f"{self.server.url}/artifact/{artifact}/{quote(name)}"}
                }
            )
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def _commitArtifact(self, artifactID: str) -> dict[str, Any]:
        artifact = self.server.artifacts[int(artifactID)]
        artifact["committed"] = True
        return {"commitArtifact": {"artifact": {"id": artifactID, "digest": artifact["digest"]}}}

    # Reports.

    def _getProjects(self, **_: Any) -> dict[str, Any]:
        return {"models": {"edges": [], "pageInfo": {"hasNextPage": False, "endCursor": None}}}

    def _createProject(self, **_: Any) -> dict[str, Any]:
        return {
            "upsertModel": {
                "model": {"id": "project", "name": "project", "entityName": ENTITY},
                "inserted": True,
            }
        }

    def _upsertView(self, id: str | None = None, **given: Any) -> dict[str, Any]:
        id = id or f"view{len(self.server.views)}"
        inserted = id not in self.server.views
        self.server.views[id] = given
        about = {
            "id": id,
            "type": "runs",
            "name": given["name"],
            "displayName": given["displayName"],
            "description": given["description"],
        }
        project = {"id": "project", "name": given["projectName"], "entityName": given["entityName"]}
        return {
            "upsertView": {
                "view": about | {"project": project, "spec": given["spec"], "updatedAt": None},
                "inserted": inserted,
            }
        }


@contextlib.contextmanager
def run_server() -> Iterator[Server]:
    """A running server."""
    with Server() as server:
        thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
