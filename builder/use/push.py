"""A prepared folder to a Hugging Face hub, in one commit: the hub goes from the old dataset to the new at once.

Large files go up before the commit and are known there by their checksum, so a push that was cut off sends only what
is missing when it is run again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from builder.dataset.layout import CARD_FILE, MANIFEST_FILE, Entry, Manifest, is_shard
from builder.files import write_whole
from builder.model.errors import HubError, OutputError, SettingError
from builder.model.text import Progress, silent
from builder.use.verify import verify

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_AGAIN = "what was uploaded is kept: run the same command again to go on"


@dataclass(frozen=True, slots=True)
class Pushed:
    """Outcome of a push.

    Attributes
    ----------
    files : tuple of (str, int)
        Path and size in bytes of every file of the dataset.
    url : str
        Page of the dataset; empty for a dry run.
    commit : str
        The commit that holds the files; empty for a dry run.
    changed : bool
        False where the hub had all of it before.
    """

    repo_id: str
    files: tuple[tuple[str, int], ...]
    url: str = ""
    commit: str = ""
    changed: bool = False


def push(
    folder: Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    tag: str | None = None,
    dry_run: bool = False,
    quick: bool = False,
    keep_card: bool = False,
    endpoint: str | None = None,
    progress: Progress = silent,
) -> Pushed:
    """Verify a prepared folder and upload it, so that ``load_dataset(repo_id)`` works at once.

    The files of the manifest are uploaded, and the manifest; shards of an earlier push that the folder has no more are
    removed in the same commit, and nothing else of the repository is touched. The token is the one that
    `huggingface_hub` finds: ``HF_TOKEN``, or that of ``hf auth login``.

    Parameters
    ----------
    repo_id : str
        ``organisation/name``; the repository is made if it is not there.
    private : bool
        Make it private; refused where it is there and public.
    revision : str, optional
        Branch to push to, made if it is not there; the main branch by default.
    tag : str, optional
        Name to give to the commit.
    dry_run : bool
        Verify, say what would be uploaded, and ask the hub nothing.
    quick : bool
        Verify sizes and checksums only.
    keep_card : bool
        Take the card as it was edited, and write so into the folder's manifest.
    endpoint : str, optional
        Base URL of the hub; ``HF_ENDPOINT`` or huggingface.co by default.

    Raises
    ------
    SettingError
        If `repo_id` is no name of a repository.
    OutputError
        If the folder is not what its manifest says.
    HubError
        If the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    folder = Path(folder)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise SettingError(f"{repo_id!r} is not organisation/name: {error}") from None
    if "/" not in repo_id:
        raise SettingError(f"{repo_id!r} is not organisation/name")
    api = HfApi(endpoint=endpoint)
    if not dry_run:
        with _clear_errors(api, repo_id):
            api.whoami()  # tells a wrong token from a repository that is not there; later answers do not
    report = verify(folder, content=not quick, load=not quick, edited_card=keep_card, progress=progress)
    if report.failed:
        card = report.failures[0].startswith(f"{CARD_FILE}: has")
        advice = "; --keep-card takes the card as it was edited" if card else ""
        raise OutputError(
            f"{folder} is not pushed (failures: {report.failed:,}), the first: {report.failures[0]}{advice}"
        )
    if report.unseen:
        raise OutputError(f"{folder} is not pushed, as it could not be verified: {report.unseen[0]}")
    if keep_card and not dry_run:
        _keep_card(folder)
    files = _files(folder)
    if dry_run:
        return Pushed(repo_id, files)
    with _clear_errors(api, repo_id):
        return _upload(api, folder, repo_id, files, private=private, revision=revision, tag=tag)


def _keep_card(folder: Path) -> None:
    """Write the card as it is into the manifest, so that the folder and all copies of it verify."""
    manifest = Manifest.read(folder)
    files = tuple(Entry.of(folder / CARD_FILE, folder) if file.path == CARD_FILE else file for file in manifest.files)
    if files != manifest.files:
        manifest = replace(manifest, files=files)
        with write_whole(folder / MANIFEST_FILE) as partial:
            partial.write_text(replace(manifest, sha256=manifest.digest).text, encoding="utf-8")


def _files(folder: Path) -> tuple[tuple[str, int], ...]:
    """Return the path and size of what the manifest names, and of itself; OutputError if a script is among it."""
    paths = [*(file.path for file in Manifest.read(folder).files), MANIFEST_FILE]
    if scripts := [path for path in paths if path.endswith(".py")]:
        raise OutputError(f"{folder / scripts[0]}: load_dataset refuses a repository with a script")
    return tuple((path, (folder / path).stat().st_size) for path in paths)


def _upload(
    api: HfApi,
    folder: Path,
    repo_id: str,
    files: tuple[tuple[str, int], ...],
    *,
    private: bool,
    revision: str | None,
    tag: str | None,
) -> Pushed:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    # Without a wish the organisation's default decides.
    url = api.create_repo(repo_id, repo_type="dataset", private=private or None, exist_ok=True)
    if private and not api.repo_info(repo_id, repo_type="dataset").private:
        raise HubError(f"{repo_id} is there and public: make it private in its settings, or leave out --private")
    if revision is not None:
        api.create_branch(repo_id, branch=revision, repo_type="dataset", exist_ok=True)
    before = api.repo_info(repo_id, repo_type="dataset", revision=revision).sha
    there = api.list_repo_files(repo_id, repo_type="dataset", revision=revision)
    script = f"{repo_id.rpartition('/')[2]}.py"
    if script in there:
        raise HubError(
            f"{repo_id} holds {script}, with which load_dataset refuses the whole repository: remove it first"
        )
    stale = set(filter(is_shard, there)) - {path for path, _ in files}
    commit = api.create_commit(
        repo_id,
        repo_type="dataset",
        revision=revision,
        operations=[
            *(CommitOperationAdd(path, folder / path) for path, _ in files),
            *(CommitOperationDelete(path) for path in sorted(stale)),
        ],
        commit_message=f"{Manifest.read(folder).counts.rows:,} spectra, by chandra-spectra",
    )
    if tag is not None:
        api.create_tag(repo_id, tag=tag, revision=commit.oid, repo_type="dataset", exist_ok=True)
        tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id, repo_type="dataset").tags}
        if tags[tag] != commit.oid:
            raise HubError(f"pushed to {repo_id}, but the tag {tag} names another commit, {tags[tag]}: choose another")
    return Pushed(repo_id, files, str(url), commit.oid, commit.oid != before)


@contextmanager
def _clear_errors(api: HfApi, repo_id: str) -> Iterator[None]:
    """Turn errors of the client into a `HubError` of one line. None of its words holds the token."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError  # type: ignore[attr-defined]

    try:
        yield
    except LocalTokenNotFoundError as error:
        raise HubError("no token: log in with `hf auth login`, or set HF_TOKEN to a token that may write") from error
    except HfHubHTTPError as error:
        raise HubError(_refusal(error, api, repo_id)) from error
    except (HTTPError, OSError, RuntimeError, ValueError, LookupError) as error:
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError):  # of one file among several
            raise HubError(_refusal(cause, api, repo_id)) from error
        words = " ".join(str(cause or error).split()) or type(error).__name__
        raise HubError(f"the push to {repo_id} at {api.endpoint} was cut off: {words}; {_AGAIN}") from error


def _refusal(error: object, api: HfApi, repo_id: str) -> str:
    response = error.response  # type: ignore[attr-defined]
    status = response.status_code
    server = error.server_message or response.headers.get("X-Error-Message") or ""  # type: ignore[attr-defined]
    words = f" ({' '.join(server.split())})" if server else ""
    if status == 401 and response.url.path.startswith("/api/whoami"):
        return f"{api.endpoint} refuses the token: log in again with `hf auth login`, or set HF_TOKEN"
    if status in (401, 404):
        return f"there is no {repo_id} at {api.endpoint}, or the token may not see it{words}"
    if status == 403:
        return (
            f"the token may not write to {repo_id} at {api.endpoint}{words}: is the name right, and the token's role?"
        )
    if status == 429:
        wait = response.headers.get("Retry-After")
        return f"{api.endpoint} gets too many requests: wait {f'{wait} s' if wait else 'some minutes'}; {_AGAIN}"
    return f"{api.endpoint} answered {status} to {response.request.method} {response.url.path}{words}; {_AGAIN}"
