"""A Hugging Face Hub on localhost: the endpoints that publishing and loading need.

    with LocalHub() as hub:
        publish(sae, "user/repo", endpoint=hub.endpoint, token=hub.token)

State is kept per commit. `LocalHub.faults` holds what should go wrong, on which requests and
how often; see `Fault`. The client is the real huggingface_hub.
"""

import hashlib
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any

from tests.local_hub_endpoints import HubEndpoints


@dataclass
class Fault:
    """Something that goes wrong on requests to matching paths.

    Attributes:
        path: regular expression that is searched in "METHOD /path".
        kind: "status" answers with `status`; "drop" closes the connection before the
            request has any effect; "drop_after" closes it after its effect, before the answer;
            "truncate" sends half of a file and closes; "shorten" sends half of a file as if it
            were the whole; "call" runs `action`, then answers as usual.
        times: on how many requests.
    """

    path: str
    kind: str = "status"
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 1
    action: Callable[["LocalHub"], object] | None = None


@dataclass
class Repo:
    """A model repo: branches and refs point to commits, commits hold all files."""

    private: bool
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)
    n_pull_requests: int = 0

    def commit(self, ref: str, files: dict[str, bytes], title: str) -> str:
        digest = hashlib.sha1(repr((ref, len(self.commits), title)).encode())
        for path, content in sorted(files.items()):
            digest.update(path.encode() + content)
        oid = digest.hexdigest()
        self.commits[oid] = files
        self.branches[ref] = oid
        self.titles.append(title)
        return oid

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches[revision]]


class LocalHub:
    """The server. Use as a context manager.

    Attributes:
        repos: by "user/name".
        faults: what goes wrong next.
        requests: "METHOD /path" of all requests so far.
        token: the only one that may write, or read what is private.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.token = "valid"
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), HubEndpoints)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "LocalHub":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def snapshot(self) -> dict[str, Any]:
        """All that is visible of all repos, to compare before and after."""
        return {
            name: (repo.private, {ref: repo.files(ref) for ref in repo.branches})
            for name, repo in self.repos.items()
        }

    def create(self, name: str, private: bool = False) -> Repo:
        repo = self.repos[name] = Repo(private)
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return repo

    def n_requests(self, path: str) -> int:
        return sum(re.search(path, request) is not None for request in self.requests)

    def take_fault(self, request: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and re.search(fault.path, request):
                fault.times -= 1
                return fault
        return None


if __name__ == "__main__":
    with LocalHub() as hub:
        print(f"--endpoint {hub.endpoint} --token {hub.token}", flush=True)  # noqa: T201
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
