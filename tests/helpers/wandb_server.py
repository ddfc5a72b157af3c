"""A W&B server on the loopback interface for the real client.

It answers the client's requests and stores everything that the client sends.
"""

from __future__ import annotations

import contextlib
import gzip
import http.server
import json
import os
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
    """The stored data of a run.

    Attributes:
        about: fields of the request that created it.
        config: configuration.
        history: logged rows.
        summary: summary values.
        files: content by file name.
        exit_code: exit code of the run; None until it ends.
        announced: number of requests that created or updated it.
    """

    about: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    exit_code: int | None = None
    announced: int = 0


class Server(http.server.ThreadingHTTPServer):
    """The server and its data.

    Attributes:
        runs: runs by id.
        artifacts: artifacts in the order of their creation.
        views: reports by id.
        operations: names of the GraphQL requests.
        unknown: GraphQL requests that the server cannot answer.
    """

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
        """Environment variables of a client."""
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
        with contextlib.suppress(ConnectionError):  # the client has ended
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
            if match := re.fullmatch(r"/upload/([^/]+)/(.+)", self.path):
                self.server.get_run(unquote(match[1])).files[unquote(match[2])] = body
            elif match := re.fullmatch(r"/artifact/(\d+)/(.+)", self.path):
                self.server.artifacts[int(match[1])]["files"][unquote(match[2])] = body
        self._send_answer()

    def do_POST(self) -> None:
        body = self._read_body()
        match = re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path)
        if not match and self.path != "/graphql":
            self._send_answer()  # the client's own telemetry
            return
        content = json.loads(
            gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        )
        with self.server.lock:
            if match:
                self._store_stream(self.server.get_run(unquote(match[1])), content)
            self._send_answer(
                {"exitcode": None, "limits": {}} if match else self._answer_query(content)
            )

    def _store_stream(self, run: Run, content: dict[str, Any]) -> None:
        """Store lines of the run's streamed files at their offsets, and the end of the run."""
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
        query, variables = content["query"], content.get("variables") or {}
        match = re.search(r"\b(?:query|mutation)\s+(\w+)", query)
        name = match[1] if match else ""
        self.server.operations.append(name)
        answer = getattr(self, f"_{name[:1].lower()}{name[1:]}", None)
        if answer is None:
            self.server.unknown.append(query)
            return {"data": {}}
        return {"data": answer(**variables)}

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

    def _organizationCoreWeaveOrganizationID(self, **_: Any) -> dict[str, Any]:
        return {"entity": {"organization": None}}

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

    def _run(self, name: str, **_: Any) -> dict[str, Any]:
        run = self.server.runs.get(name)
        fields = None if run is None else self._describe_run(name, run)
        return {"project": {"run": fields}}

    def _describe_run(self, name: str, run: Run) -> dict[str, Any]:
        return {
            "id": name,
            "name": name,
            "projectId": "1",
            "displayName": run.about.get("displayName"),
            "state": "running" if run.exit_code is None else "finished",
            "config": _format_config(run.config),
            "summaryMetrics": json.dumps(run.summary),
            "systemMetrics": "{}",
            "tags": run.about.get("tags") or [],
            "user": {"name": ENTITY, "username": ENTITY},
            "historyKeys": {},
            "readOnly": False,
        }

    def _upsertBucket(self, name: str | None = None, **fields: Any) -> dict[str, Any]:
        name = name or fields["id"]
        inserted = name not in self.server.runs
        run = self.server.get_run(name)
        run.announced += 1
        if fields.get("summaryMetrics") is not None:
            run.summary = json.loads(fields["summaryMetrics"])
        run.config |= {
            key: entry["value"]
            for key, entry in json.loads(fields.pop("config", None) or "{}").items()
            if "value" in entry
        }
        run.about |= {key: value for key, value in fields.items() if value is not None}
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

    def _upsertView(self, id: str | None = None, **fields: Any) -> dict[str, Any]:
        id = id or f"view{len(self.server.views)}"
        inserted = id not in self.server.views
        self.server.views[id] = fields
        view = {
            "id": id,
            "type": "runs",
            "name": fields["name"],
            "displayName": fields["displayName"],
            "description": fields["description"],
        }
        project = {
            "id": "project",
            "name": fields["projectName"],
            "entityName": fields["entityName"],
        }
        return {
            "upsertView": {
                "view": view | {"project": project, "spec": fields["spec"], "updatedAt": None},
                "inserted": inserted,
            }
        }


def hide_wandb() -> dict[str, str | None]:
    """Variables for `processes.run` that remove those of W&B in this process.

    WANDB_SERVICE of an earlier test would take the runs of the command.
    """
    return {name: None for name in os.environ if name.startswith("WANDB")}


@contextlib.contextmanager
def run_server() -> Iterator[Server]:
    """Run a server in a thread."""
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
