"""A small hub on loopback: the calls that huggingface_hub and datasets make to push a dataset and to load it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "right" * 6
DROP = 0  # in place of a status: close the connection without an answer


@dataclass
class Repo:
    """The files of every commit, by path, and what names a commit."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        text = f"{len(self.commits)} {sorted((path, hashlib.sha1(data).hexdigest()) for path, data in files.items())}"
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid

    def find(self, revision: str) -> str | None:
        return (
            self.branches.get(revision) or self.tags.get(revision) or (revision if revision in self.commits else None)
        )


class Hub(ThreadingHTTPServer):
    """The server; use as a context.

    Attributes
    ----------
    repos : dict of str to Repo
    blobs : dict of str to bytes
        Large files, by SHA-256.
    mode : {'regular', 'lfs'}
        How the client must upload every file.
    faults : list of (str, int, dict)
        Regular expression of ``METHOD /path``, the status to answer with once, and headers.
    requests : list of str
        ``METHOD /path`` of each request.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.mode = "regular"
        self.faults: list[tuple[str, int, dict[str, str]]] = []
        self.requests: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """A client that went away is no news."""


class Handler(BaseHTTPRequestHandler):
    """One request: found in `ROUTES`, answered by the method named there."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None: ...

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.server.requests.append(request)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for fault in self.server.faults:
            if re.match(fault[0], request):
                self.server.faults.remove(fault)
                self.close_connection = True
                if fault[1] != DROP:
                    self._answer({"error": "as told"}, fault[1], {**fault[2], "Connection": "close"})
                return
        if self.headers.get("Authorization") not in (None, f"Bearer {TOKEN}"):
            self._error(401, "Invalid credentials in Authorization header")
            return
        for pattern, name in ROUTES:
            if match := re.fullmatch(pattern, request):
                groups = match.groupdict()
                if name != "create" and (repo_id := groups.pop("id", None)) is not None:
                    repo = self.server.repos.get(repo_id)
                    if repo is None or (repo.private and not self.headers.get("Authorization")):
                        self._error(401 if repo is None else 404, "Repository not found", "RepoNotFound")
                        return
                    groups["repo"] = repo
                    if (revision := groups.pop("revision", None)) is not None:
                        groups["branch"], groups["oid"] = revision, repo.find(revision)
                        if groups["oid"] is None:
                            self._error(404, "Invalid rev id", "RevisionNotFound")
                            return
                getattr(self, name)(**groups)
                return
        self._error(404, f"no such call: {request}")

    do_GET = do_HEAD = do_POST = do_PUT = _serve  # noqa: N815

    def _answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _error(self, status: int, message: str, code: str = "") -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self._answer({"error": message}, status, headers)

    def whoami(self) -> None:
        self._answer({"type": "user", "name": "tester", "orgs": [{"name": "org"}]})

    def create(self) -> None:
        asked = json.loads(self.body)
        if asked["organization"] != "org":
            self._error(
                403, f'You don\'t have the rights to create a dataset under the namespace "{asked["organization"]}"'
            )
            return
        repo_id = f"{asked['organization']}/{asked['name']}"
        if repo_id in self.server.repos:
            there = {"error": "You already created this dataset repo", "url": f"{self.server.url}/datasets/{repo_id}"}
            self._answer(there, 409)
            return
        repo = self.server.repos[repo_id] = Repo(asked.get("visibility") == "private" or bool(asked.get("private")))
        repo.commit("main", {".gitattributes": b"*.parquet filter=lfs\n"})
        self._answer({"url": f"{self.server.url}/datasets/{repo_id}"})

    def _name(self, repo: Repo) -> str:
        return next(name for name, found in self.server.repos.items() if found is repo)

    def info(self, repo: Repo, branch: str = "main", oid: str | None = None) -> None:
        sha = oid or repo.branches["main"]
        siblings = [{"rfilename": path} for path in repo.commits[sha]]
        self._answer(
            {
                "id": self._name(repo),
                "sha": sha,
                "private": repo.private,
                "tags": [],
                "siblings": siblings,
                "downloads": 0,
                "likes": 0,
                "gated": False,
                "disabled": False,
            }
        )

    def branch(self, repo: Repo, name: str) -> None:
        if name in repo.branches:
            self._error(409, "Reference already exists")
            return
        repo.branches[name] = repo.branches["main"]
        self._answer({})

    def tag(self, repo: Repo, branch: str, oid: str) -> None:
        name = json.loads(self.body)["tag"]
        if name in repo.tags:
            self._error(409, "Tag reference exists already")
            return
        repo.tags[name] = oid
        self._answer({})

    def refs(self, repo: Repo) -> None:
        words = (("branches", "heads", repo.branches), ("tags", "tags", repo.tags))
        self._answer(
            {"converts": []}
            | {
                key: [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in named.items()]
                for key, kind, named in words
            }
        )

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(data), "oid": _git_oid(data)}
        digest = hashlib.sha256(data).hexdigest()
        if digest in self.server.blobs:
            entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
        return entry

    def tree(self, repo: Repo, branch: str, oid: str, under: str | None = None) -> None:
        files, prefix = repo.commits[oid], f"{under}/" if under else ""
        recursive = "recursive=true" in self.path.lower()
        found: list[dict[str, Any]] = []
        folders: set[str] = set()
        for path in sorted(path for path in files if path.startswith(prefix)):
            rest = path[len(prefix) :]
            parts = rest.split("/")
            folders.update(
                prefix + "/".join(parts[:depth])
                for depth in range(1, len(parts) if recursive else 2)
                if depth < len(parts)
            )
            if recursive or len(parts) == 1:
                found.append(self._entry(path, files[path]))
        if under and not found and not folders:
            self._error(404, f"{under} does not exist", "EntryNotFound")
            return
        self._answer(
            [{"type": "directory", "path": name, "oid": "0" * 40, "size": 0} for name in sorted(folders)] + found
        )

    def paths_info(self, repo: Repo, branch: str, oid: str) -> None:
        try:
            asked = json.loads(self.body)["paths"]
        except ValueError:
            asked = [
                unquote(pair.partition("=")[2].replace("+", " "))
                for pair in self.body.decode().split("&")
                if pair.startswith("paths=")
            ]
        files = repo.commits[oid]
        answer = [self._entry(path, files[path]) for path in asked if path in files]
        answer += [
            {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
            for path in asked
            if path not in files and any(name.startswith(f"{path}/") for name in files)
        ]
        self._answer(answer)

    def resolve(self, repo: Repo, branch: str, oid: str, path: str) -> None:
        data = repo.commits[oid].get(path)
        if data is None:
            self._error(404, "Entry not found", "EntryNotFound")
            return
        headers = {
            "X-Repo-Commit": oid,
            "ETag": f'"{_git_oid(data)}"',
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            start, end = int(match[1]), min(int(match[2] or len(data)), len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            self._answer(data[start : end + 1], 206, headers)
            return
        self._answer(data, 200, headers)

    def validate(self) -> None:
        self._answer({"errors": [], "warnings": []})

    def preupload(self, repo: Repo, branch: str, oid: str) -> None:
        files = repo.commits[oid]
        answer = []
        for asked in json.loads(self.body)["files"]:
            mode = "regular" if asked["path"] == "README.md" else self.server.mode
            entry = {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False}
            if (data := files.get(asked["path"])) is not None:
                entry["oid"] = hashlib.sha256(data).hexdigest() if mode == "lfs" else _git_oid(data)
            answer.append(entry)
        self._answer({"files": answer})

    def batch(self, repo: Repo) -> None:
        objects = []
        for asked in json.loads(self.body)["objects"]:
            href = f"{self.server.url}/blobs/{asked['oid']}"
            there = asked["oid"] in self.server.blobs
            objects.append(asked | ({} if there else {"actions": {"upload": {"href": href, "header": {}}}}))
        self._answer({"transfer": "basic", "objects": objects})

    def put(self, digest: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == digest
        self.server.blobs[digest] = self.body
        self._answer({})

    def commit(self, repo: Repo, branch: str, oid: str) -> None:
        if not self.headers.get("Authorization"):
            self._error(401, "Repository not found", "RepoNotFound")
            return
        files = dict(repo.commits[oid])
        for line in self.body.splitlines():
            key, value = (json.loads(line)[word] for word in ("key", "value"))
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.blobs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        new = repo.commit(branch, files)
        self._answer({"commitUrl": f"{self.server.url}/datasets/{self._name(repo)}/commit/{new}", "commitOid": new})


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


_ID = r"(?P<id>[\w.-]+/[\w.-]+)"
_AT = r"(?P<revision>.+)"
ROUTES = [
    (r"GET /api/whoami-v2", "whoami"),
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"(?:GET|HEAD) /api/datasets/{_ID}", "info"),
    (rf"(?:GET|HEAD) /api/datasets/{_ID}/revision/{_AT}", "info"),
    (rf"GET /api/datasets/{_ID}/refs", "refs"),
    (rf"GET /api/datasets/{_ID}/tree/(?P<revision>[^/]+)(?:/(?P<under>.+))?", "tree"),
    (rf"POST /api/datasets/{_ID}/paths-info/{_AT}", "paths_info"),
    (rf"POST /api/datasets/{_ID}/branch/(?P<name>.+)", "branch"),
    (rf"POST /api/datasets/{_ID}/tag/{_AT}", "tag"),
    (rf"POST /api/datasets/{_ID}/preupload/{_AT}", "preupload"),
    (rf"POST /api/datasets/{_ID}/commit/{_AT}", "commit"),
    (rf"POST /datasets/{_ID}\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /blobs/(?P<digest>\w+)", "put"),
    (rf"(?:GET|HEAD) /datasets/{_ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]
