"""The endpoints of `local_hub.LocalHub`: what the real Hub answers, as far as it is needed."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


class Answer(Exception):
    """Ends the handling of a request."""

    def __init__(self, status: int, content: Any = None, **headers: str):
        super().__init__(status)
        self.status, self.content = status, content
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class HubEndpoints(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Any:
        return self.server.hub  # type: ignore[attr-defined]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        request = f"{self.command} {url.path}"
        with self.hub.lock:
            self.hub.requests.append(request)
            fault = self.hub.take_fault(request)
        if fault is not None and fault.kind == "call" and fault.action is not None:
            fault.action(self.hub)
            fault = None
        if fault is not None and fault.kind == "drop":
            self._drop()
            return
        try:
            if fault is not None and fault.kind == "status":
                raise Answer(fault.status, {"error": "as asked"}, **fault.headers)
            with self.hub.lock:
                self._route(unquote(url.path))
            raise Answer(404, {"error": f"no such endpoint: {request}"})
        except Answer as answer:
            if fault is not None and fault.kind == "drop_after":
                self._drop()
            else:
                self._send(answer, fault.kind if fault else "")

    do_HEAD = do_POST = do_GET

    def _drop(self) -> None:
        self.close_connection = True
        self.connection.close()

    def _send(self, answer: Answer, damage: str) -> None:
        content = answer.content
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        sent = body[: len(body) // 2] if damage in ("truncate", "shorten") else body
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(sent if damage == "shorten" else body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)
        if damage == "truncate":
            self.wfile.flush()
            self._drop()

    # --- routes ---

    def _route(self, path: str) -> None:
        for method, pattern, handle in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in method:
                handle(self, **match.groupdict())

    def _may_write(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            raise Answer(401, {"error": "Invalid username or password."})

    def _repo(self, repo_id: str) -> Any:
        repo = self.hub.repos.get(repo_id)
        if repo is None:
            raise Answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        if repo.private and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            raise Answer(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        return repo

    def _oid(self, repo: Any, revision: str) -> str:
        oid = repo.resolve(unquote(revision))
        if oid is None:
            raise Answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        return oid

    def validate_yaml(self) -> None:
        content = json.loads(self.body)["content"]
        match = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        data = yaml.safe_load(match.group(1)) if match else {}
        errors = []
        for name in ("tags", "datasets"):
            if not isinstance(data.get(name, []), list):
                errors.append({"message": f'"{name}" must be an array'})
        for model in data.get("model-index", []):
            for result in model["results"]:
                if not {"type"} <= set(result["dataset"]) or not result["metrics"]:
                    errors.append({"message": '"model-index" is incomplete'})
        raise Answer(400 if errors else 200, {"errors": errors, "warnings": []})

    def create(self) -> None:
        self._may_write()
        asked = json.loads(self.body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repos:
            raise Answer(409, {"error": "You already created this model repo", "url": name})
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.create(name, private)
        raise Answer(200, {"url": f"{self.hub.endpoint}/{name}", "name": name, "id": name})

    def create_branch(self, repo_id: str, revision: str) -> None:
        self._may_write()
        repo = self._repo(repo_id)
        repo.branches[unquote(revision)] = self._oid(repo, "main")
        raise Answer(200, {})

    def info(self, repo_id: str, revision: str | None = None) -> None:
        repo = self._repo(repo_id)
        oid = self._oid(repo, revision or "main")
        siblings = [{"rfilename": path} for path in repo.commits[oid]]
        raise Answer(
            200,
            {"id": repo_id, "sha": oid, "private": repo.private, "siblings": siblings, "tags": []},
        )

    def tree(self, repo_id: str, revision: str) -> None:
        repo = self._repo(repo_id)
        files = repo.commits[self._oid(repo, revision)]
        raise Answer(
            200,
            [
                {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
                for path, content in sorted(files.items())
            ],
        )

    def preupload(self, repo_id: str, revision: str) -> None:
        self._may_write()
        repo = self._repo(repo_id)
        files = repo.commits[self._oid(repo, revision)]
        answer = []
        for asked in json.loads(self.body)["files"]:
            entry = {"path": asked["path"], "uploadMode": "regular", "shouldIgnore": False}
            if asked["path"] in files:
                entry["oid"] = git_oid(files[asked["path"]])
            answer.append(entry)
        raise Answer(200, {"files": answer})

    def commit(self, repo_id: str, revision: str) -> None:
        self._may_write()
        repo = self._repo(repo_id)
        parent = self._oid(repo, revision)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        is_pull_request = "create_pr" in self.query
        if not is_pull_request and header.get("parentCommit", parent) != parent:
            raise Answer(412, {"error": "A commit has happened since. Please refresh."})
        files = dict(repo.commits[parent])
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                del files[value["path"]]
        ref, answer = unquote(revision), {}
        if is_pull_request:
            repo.n_pull_requests += 1
            ref = f"refs/pr/{repo.n_pull_requests}"
            page = f"{self.hub.endpoint}/{repo_id}/discussions/{repo.n_pull_requests}"
            answer["pullRequestUrl"] = page
        oid = repo.commit(ref, files, header["summary"])
        url = f"{self.hub.endpoint}/{repo_id}/commit/{oid}"
        raise Answer(200, {"success": True, "commitOid": oid, "commitUrl": url, **answer})

    def resolve(self, repo_id: str, revision: str, path: str) -> None:
        repo = self._repo(repo_id)
        oid = self._oid(repo, revision)
        if path not in repo.commits[oid]:
            raise Answer(
                404, {"error": "not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=oid
            )
        content, status, headers = repo.commits[oid][path], 200, {}
        etag = f'"{git_oid(content)}"'
        if "Range" in self.headers and self.command == "GET":
            start = int(self.headers["Range"].removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            content, status = content[start:], 206
        raise Answer(status, content, X_Repo_Commit=oid, ETag=etag, **headers)


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


_REPO = r"(?P<repo_id>[^/]+/[^/]+)"
_REVISION = r"(?P<revision>refs/pr/\d+|refs%2Fpr%2F\d+|[^/]+)"
_ROUTES: list[tuple[tuple[str, ...], str, Callable[..., None]]] = [
    (("POST",), "/api/validate-yaml", HubEndpoints.validate_yaml),
    (("POST",), "/api/repos/create", HubEndpoints.create),
    (("POST",), f"/api/models/{_REPO}/branch/{_REVISION}", HubEndpoints.create_branch),
    (("GET",), f"/api/models/{_REPO}", HubEndpoints.info),
    (("GET",), f"/api/models/{_REPO}/revision/{_REVISION}", HubEndpoints.info),
    (("GET",), f"/api/models/{_REPO}/tree/{_REVISION}/?", HubEndpoints.tree),
    (("POST",), f"/api/models/{_REPO}/preupload/{_REVISION}", HubEndpoints.preupload),
    (("POST",), f"/api/models/{_REPO}/commit/{_REVISION}", HubEndpoints.commit),
    (("GET", "HEAD"), f"/{_REPO}/resolve/{_REVISION}/(?P<path>.+)", HubEndpoints.resolve),
]
