"""The local archive server behaves as the real services do, and fails as it is told to."""

from __future__ import annotations

import collections
import concurrent.futures
import email.utils
import gzip
import hashlib
import io
import json
import random
import socket
import tarfile
import threading
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest
import requests

from builder.archive.catalog import read_votable, write_votable
from builder.archive.products import KINDS, ProductName, members
from builder.model.columns import ASKED as QUERIED
from builder.model.errors import ArchiveError, SettingError
from builder.model.ids import DetectionId
from builder.model.records import File
from builder.model.settings import Settings
from builder.simulator.faults import PERMANENT, TRANSIENT, Faults
from builder.simulator.server import ArchiveServer
from builder.simulator.services import MirrorHoldings

FROM = (
    "FROM csc21.master_source m, csc21.master_stack_assoc a, csc21.observation_source o, "
    "csc21.stack_observation_assoc b, csc21.stack_source s WHERE m.name = a.name "
    "AND s.detect_stack_id = a.detect_stack_id AND s.region_id = a.region_id AND s.detect_stack_id = b.detect_stack_id "
    "AND s.region_id = b.region_id AND o.obsid = b.obsid AND o.obi = b.obi AND o.region_id = b.region_id"
)

ROWS: list[dict[str, object]] = [
    {"name": "2CXO J0001", "ra": 0.1, "dec": -1.0, "obsid": 100, "obi": 0, "region_id": 1, "theta": 1.0},
    {"name": "2CXO J0001", "ra": 0.1, "dec": -1.0, "obsid": 101, "obi": 0, "region_id": 7, "theta": 2.0},
    {"name": "2CXO J1200", "ra": 180.0, "dec": 30.0, "obsid": 100, "obi": 0, "region_id": 2, "theta": None},
    {"name": "it's & <J2359>", "ra": 359.9, "dec": 89.0, "obsid": 102, "obi": 1, "region_id": 3, "theta": float("nan")},
    {"name": "2CXO J2200", "ra": 330.0, "dec": 5.0, "obsid": 103, "obi": 0, "region_id": 4, "theta": 9.0},
]
for _row in ROWS:
    _row |= {"instrument": "ACIS", "src_cnts_aper_b": 50.0, "flux_significance_b": 5.0, "flux_bb_aper_b": 1e-14}
    _row |= {"sat_src_flag": _row["obsid"] == 103, "conf_code": 0 if _row["obsid"] == 103 else None}
INTERLEAVED = DetectionId(102, 1, 3)

(FROM_WHERE,) = Settings().selection.queries("csc21")
QUERY = f"SELECT {', '.join(column.query for column in QUERIED)} {FROM_WHERE}"


def ids(numbers: Iterable[int]) -> list[DetectionId]:
    keys = ("obsid", "obi", "region_id")
    return [DetectionId.parse(".".join(str(ROWS[n][key]) for key in keys)) for n in numbers]


def block(*cards: str) -> bytes:
    return "".join(card.ljust(80) for card in (*cards, "END")).ljust(2880).encode()


def fits(detection: DetectionId, kind: str) -> bytes:
    """Three blocks in the form of a FITS file: a header, an extension's header, and data that do not compress."""
    noise = random.Random(f"{detection}{kind}").randbytes(2880)
    cards = (f"OBS_ID  = '{detection.obsid:<8d}'", f"REGIONID= '{detection.region_id:04d}    '")
    return block("SIMPLE  = T") + block("XTENSION= 'BINTABLE'", f"EXTNAME = '{kind}'", *cards) + noise


class TinyHoldings:
    def __init__(self, rows: list[dict[str, object]] = ROWS) -> None:
        self.rows = rows

    def files(self, detection: DetectionId) -> list[File]:
        found = []
        for cycle in ("e1", "e2") if detection == INTERLEAVED else ("",):
            stem = (
                f"acisf{detection.obsid:05d}_{detection.obi:03d}N001{cycle and '_'}{cycle}_r{detection.region_id:04d}"
            )
            data = {kind: gzip.compress(fits(detection.with_cycle(cycle), kind), mtime=0) for kind in KINDS}
            found += [File(f"{stem}_{kind}3.fits.gz", data[kind]) for kind in KINDS]
        return found


def query(server: ArchiveServer, adql: str, **more: str) -> requests.Response:
    form = {"REQUEST": "doQuery", "LANG": "ADQL", "QUERY": adql, **more}
    return requests.post(f"{server.url}/csc21tap/sync", data=form, timeout=60)


def packageset(detections: Iterable[DetectionId], types: Iterable[str] = ("spectrum", "arf", "rmf")) -> dict[str, str]:
    return {"version": "rel2.1", "packageset": ",".join(f"{d}/{kind}/b" for d in detections for kind in types)}


def retrieve(server: ArchiveServer, detections: Iterable[DetectionId], **more: float) -> requests.Response:
    return requests.get(f"{server.url}/csccli/retrieve", packageset(detections), timeout=more.get("timeout", 60))


def unpack(answer: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(answer), mode="r:") as tar:
        return {member.name: stream.read() for member in tar if (stream := tar.extractfile(member)) is not None}


def cells(answer: requests.Response) -> list[list[str]]:
    """The texts of a small VOTable's cells."""
    return [
        [cell.text or "" for cell in row]
        for row in ElementTree.fromstring(answer.content).iter()
        if row.tag.endswith("TR")
    ]


# The catalog


def test_a_query_is_answered_by_a_redirect_to_a_votable_with_get_and_post_alike() -> None:
    with ArchiveServer(TinyHoldings()) as server:
        form = {"REQUEST": "doQuery", "LANG": "ADQL", "QUERY": QUERY, "FORMAT": "csv"}
        first = requests.get(f"{server.url}/csc21tap/sync", form, allow_redirects=False, timeout=60)
        assert (first.status_code, first.content) == (303, b"")
        assert first.headers["Location"].startswith(f"{server.url}/csc21tap/results/")
        answer = requests.get(first.headers["Location"], timeout=60)
        assert answer.headers["Content-Type"] == "application/x-votable+xml"
        assert answer.content == requests.post(f"{server.url}/csc21tap/sync", form, timeout=60).content
        table, overflow = read_votable(answer.content, "answer")
    assert not overflow
    assert table["theta"].to_pylist() == [1.0, 2.0, 9.0]
    assert table["sat_src_flag"].to_pylist() == [False, False, True]
    assert table["conf_code"].to_pylist() == [None, None, 0]
    assert table["hard_hm"].to_pylist() == [None, None, None]


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("a.match_type = 'u'", [0, 1, 2, 3, 4]),
        ("a.match_type <> 'u'", []),
        ("o.theta > 0", [0, 1, 4]),
        ("o.theta <> 1.0", [1, 4]),
        ("o.theta IS NULL", [2, 3]),
        ("o.theta is not null and o.obsid=100", [0]),
        ("(o.theta < 5 OR o.theta >= 5)", [0, 1, 4]),
        ("o.theta BETWEEN 1 AND 2e0", [0, 1]),
        ("o.obsid IN (101, 103)", [1, 4]),
        ("m.name IN ('it''s & <J2359>', 'nothing')", [3]),
        ("m.name >= '2CXO J1200' AND m.name <= '2CXO J2200'", [2, 4]),
        ("((m.ra >= 359.5) OR (m.ra <= .5)) AND m.dec > -2.5", [0, 1, 3]),
        ("((o.obsid = 100 AND o.obi = 0 AND o.region_id = 2) OR (o.obsid = 102 AND o.obi = 1))", [2, 3]),
        ("o.obsid = 100 AND (o.region_id = 1 OR o.region_id = 7 OR (o.region_id = 2))", [0, 2]),
        ("o.sat_src_flag = 1", [4]),
        ("o.obsid = '101'", []),
    ],
)
def test_conditions_are_evaluated_as_in_sql_where_a_comparison_with_null_is_never_true(
    condition: str, expected: list[int]
) -> None:
    with ArchiveServer(TinyHoldings()) as server:
        answer = query(server, f"SELECT o.obsid, o.region_id {FROM} AND {condition}")
    assert sorted(cells(answer)) == sorted([str(ROWS[n]["obsid"]), str(ROWS[n]["region_id"])] for n in expected)


@pytest.mark.parametrize(
    ("adql", "expected"),
    [
        (f"SELECT COUNT(*) AS n {FROM} AND o.obsid = 100", [["2"]]),
        (f"SELECT TOP 2 o.obsid {FROM} ORDER BY o.obsid DESC, o.region_id", [["103"], ["102"]]),
        (f"SELECT o.region_id AS region {FROM} AND o.obsid = 100 ORDER BY o.obsid, region DESC", [["2"], ["1"]]),
        (f"SELECT o.region_id {FROM} ORDER BY o.obsid DESC, m.name", [["4"], ["3"], ["7"], ["1"], ["2"]]),
        ("select name from CSC21.Master_Source where ra < 1", [["2CXO J0001"]]),
        ("SELECT COUNT(*) FROM csc21.master_source m", [["4"]]),
        ("SELECT theta FROM csc21.observation_source AS o WHERE o.obsid IN (100)", [["1.0"], [""]]),
    ],
)
def test_selected_columns(adql: str, expected: list[list[str]]) -> None:
    with ArchiveServer(TinyHoldings()) as server:
        assert cells(query(server, adql)) == expected


def test_infinities_are_spelt_as_votable_has_them() -> None:
    rows = [{**ROWS[0], "obsid": n, "theta": theta} for n, theta in enumerate((float("inf"), float("-inf")))]
    with ArchiveServer(TinyHoldings(rows)) as server:
        assert cells(query(server, f"SELECT o.theta {FROM}")) == [["+Inf"], ["-Inf"]]


@pytest.mark.parametrize(
    ("adql", "reason"),
    [
        (
            "SELECT m.name FROM csc21.master_source m WHERE 1 = CONTAINS(POINT('ICRS', m.ra, m.dec), 1)",
            "POINT not found",
        ),
        ("SELECT m.name FROM csc20.master_source m", "table csc20.master_source not found"),
        ("SELECT m.nam FROM csc21.master_source m", "column m.nam not found"),
        ("SELECT x.name FROM csc21.master_source m", "column x.name not found"),
        ("SELECT m.name FROM csc21.master_source m WHERE abs(m.ra) < 1", "abs not found"),
        ("SELECT m.name FROM csc21.master_source m WHERE m.name = (SELECT name FROM sqlite_master)", "sqlite_master"),
        ("SELECT m.name FROM csc21.master_source m JOIN csc21.observation_source o ON 1", "unexpected JOIN"),
        ("SELECT m.name FROM csc21.master_source m LIMIT 2", "unexpected LIMIT"),
        ("SELECT m.name FROM csc21.master_source m; SELECT 1", "unexpected ;"),
        ("SELECT m.name FROM csc21.master_source m WHERE m.name = 'x", "unrecognized token"),
        ("SELECT m.name, a.name FROM csc21.master_source m, csc21.master_stack_assoc a", "the same name"),
        ("SELECT m.ra FROM csc21.master_source m WHERE m.ra >", "incomplete input"),
        ("SELECT m.ra FROM csc21.master_source m WHERE " + "(" * 5000 + "1" + ")" * 5000, ""),
        ("SELECT '\0'", "null character"),
        ("DELETE FROM csc21.master_source", "expected SELECT"),
        ("", "expected SELECT"),
    ],
)
@pytest.mark.parametrize("status", [200, 400])
def test_what_is_not_understood_is_an_error_with_a_reason(adql: str, reason: str, status: int) -> None:
    with ArchiveServer(TinyHoldings(), error_status=status) as server:
        answer = query(server, adql)
    assert answer.status_code == status
    assert '<INFO name="QUERY_STATUS" value="ERROR">' in answer.text
    assert reason in answer.text


@pytest.mark.parametrize("form", [{"LANG": "SQL"}, {"REQUEST": "getCapabilities"}, {"MAXREC": "many"}])
def test_a_malformed_tap_request_is_an_error(form: dict[str, str]) -> None:
    with ArchiveServer(TinyHoldings()) as server:
        assert next(iter(form)) in query(server, QUERY, **form).text


def test_a_row_limit_of_the_server_or_the_client_is_an_overflow_after_the_table() -> None:
    adql = f"SELECT o.obsid {FROM}"
    with ArchiveServer(TinyHoldings(), max_rows=4) as server:
        answers = [query(server, adql), query(server, adql, MAXREC="2"), query(server, f"{adql} AND o.obsid <> 100")]
        assert b'value="OVERFLOW"' not in query(server, adql.replace("SELECT", "SELECT TOP 4")).content
    assert [len(cells(answer)) for answer in answers] == [4, 2, 3]
    after = ['value="OVERFLOW"' in answer.text.partition("</TABLE>")[2] for answer in answers]
    assert after == [True, True, False]


def test_a_hundred_thousand_rows_are_queried_by_several_at_once() -> None:
    rows = [{**ROWS[n % 5], "obsid": n} for n in range(100_000)]
    with ArchiveServer(TinyHoldings(rows)) as server:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(lambda _: query(server, f"SELECT COUNT(*) AS n {FROM_WHERE}"), range(2)))
        assert [cells(answer) for answer in answers] == [[["60000"]]] * 2


def test_a_query_without_a_join_condition_is_stopped() -> None:
    rows = [{**ROWS[n % 5], "obsid": n} for n in range(2000)]
    with ArchiveServer(TinyHoldings(rows)) as server:
        for _ in range(2):
            runaway = query(server, "SELECT COUNT(*) FROM csc21.observation_source o, csc21.stack_source s")
            assert "is a join condition missing?" in runaway.text
            assert cells(query(server, f"SELECT COUNT(*) AS n {FROM_WHERE}")) == [["1200"]]


def test_pyvo_gets_the_same_catalog() -> None:
    dal = pytest.importorskip("pyvo").dal
    with ArchiveServer(TinyHoldings(), max_rows=2) as server:
        service = dal.TAPService(f"{server.url}/csc21tap")
        adql = f"SELECT m.name, o.obsid, o.theta, o.flux_aper_b {FROM}"
        found = service.search(f"{adql} AND o.obsid = 102").to_table()
        assert (found["name"][0], found["obsid"][0], found["theta"].mask[0]) == ("it's & <J2359>", 102, True)
        assert str(found["flux_aper_b"].unit) == "erg / (s cm2)"
        assert len(service.search(adql, maxrec=1)) == 1
        with pytest.warns(dal.DALOverflowWarning):
            assert len(service.search(adql)) == 2
        with pytest.raises(dal.DALQueryError, match="CIRCLE not found"):
            service.search(f"{adql} AND CIRCLE(1) = 1")


# The files


def test_retrieve_answers_one_tar_of_what_there_is_one_folder_deep() -> None:
    with ArchiveServer(TinyHoldings()) as server:
        answer = retrieve(server, [*ids([0, 3]), DetectionId(999, 0, 1)])
        files = unpack(answer.content)
        assert requests.post(f"{server.url}/csccli/retrieve", packageset(ids([0])), timeout=60).ok
        assert unpack(retrieve(server, [DetectionId(999, 0, 1)]).content) == {}
        arf = requests.get(f"{server.url}/csccli/retrieve", packageset(ids([0]), ["arf"]), timeout=60)
        assert list(unpack(arf.content)) == ["package/acisf00100_000N001_r0001_arf3.fits.gz"]
        assert server.log[0].detections == ("100.0.1", "102.1.3", "999.0.1")
    assert answer.headers["Content-Type"] == "application/x-tar"
    assert len(files) == 3 + 6
    assert all(name.count("/") == 1 and gzip.decompress(data) for name, data in files.items())


def test_holdings_that_are_not_gzipped_are_served_gzipped() -> None:
    class Plain(TinyHoldings):
        def files(self, detection: DetectionId) -> list[File]:
            return [File(f.name.removesuffix(".gz"), gzip.decompress(f.data)) for f in super().files(detection)]

    with ArchiveServer(Plain()) as server:
        served = unpack(retrieve(server, ids([1])).content)
    assert {name: gzip.decompress(data) for name, data in served.items()} == {
        f"package/{file.name}": gzip.decompress(file.data) for file in TinyHoldings().files(ids([1])[0])
    }


def test_browse_and_retrieve_file_answer_the_files_one_by_one() -> None:
    with ArchiveServer(TinyHoldings()) as server:
        listed = requests.get(f"{server.url}/csccli/browse", packageset(ids([3])), timeout=60).json()
        assert collections.Counter(item["filetype"] for item in listed) == {"spectrum": 2, "arf": 2, "rmf": 2}
        for item in listed:
            answer = requests.get(f"{server.url}/csccli/retrieveFile", {**item, "version": "cur"}, timeout=60)
            name = ProductName.parse(item["filename"])
            assert name is not None
            assert gzip.decompress(answer.content) == fits(name.detection, name.kind)
        wrong = {"filename": "acisf00100_000N009_r0001_arf3.fits.gz", "filetype": "arf", "version": "cur"}
        for change in ({}, {"filetype": "rmf"}, {"filename": "x"}, {"more": "1"}):
            answer = requests.get(f"{server.url}/csccli/retrieveFile", wrong | change, timeout=60)
            assert answer.text.startswith("Error executing query:")


@pytest.mark.parametrize(
    "change",
    [
        {"packageset": "100.0.1"},
        {"packageset": "100.0.1/pha/b"},
        {"packageset": ""},
        {"extra": "1"},
        {"packageset": "100.0.12345/arf/b"},
        {"packageset": "100.0.1.e1/arf/b"},
    ],
)
@pytest.mark.parametrize("service", ["retrieve", "browse"])
def test_malformed_requests_are_answered_by_a_text_with_status_200(service: str, change: dict[str, str]) -> None:
    with ArchiveServer(TinyHoldings()) as server:
        answer = requests.get(f"{server.url}/csccli/{service}", packageset(ids([0])) | change, timeout=60)
    assert answer.status_code == 200
    assert answer.text.startswith("Error executing query:")


def test_an_unknown_release_is_answered_by_a_page_with_status_200() -> None:
    with ArchiveServer(TinyHoldings()) as server:
        form = packageset(ids([0])) | {"version": "rel9"}
        answer = requests.get(f"{server.url}/csccli/retrieve", form, timeout=60)
        assert requests.head(f"{server.url}/csccli/retrieve", params=form, timeout=60).status_code == 405
        assert requests.get(f"{server.url}/else", timeout=60).status_code == 404
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")


def test_a_mirror_folder_is_served(tmp_path: Path) -> None:
    (tmp_path / "packages").mkdir()
    (tmp_path / "catalog.vot").write_bytes(write_votable(ROWS))
    lines = []
    for number, detections in enumerate((ids([0, 1, 2]), ids([3, 4]))):
        path = tmp_path / f"packages/{number:05d}.tar"
        with tarfile.open(path, "w") as tar:
            for file in (file for detection in detections for file in TinyHoldings().files(detection)):
                member = tarfile.TarInfo(f"package/{file.name}")
                member.size = len(file.data)
                tar.addfile(member, io.BytesIO(file.data))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entry = {"file": f"packages/{path.name}", "bytes": path.stat().st_size, "sha256": digest}
        lines.append(json.dumps({**entry, "detections": [str(detection) for detection in detections]}))
    (tmp_path / "packages.jsonl").write_text("\n".join(lines) + "\n")

    with ArchiveServer(MirrorHoldings(tmp_path)) as mirror, ArchiveServer(TinyHoldings()) as original:
        catalogs = [query(server, QUERY).content for server in (mirror, original)]
        packages = [unpack(retrieve(server, ids([4, 3, 0])).content) for server in (mirror, original)]
        (tmp_path / "packages/00000.tar").unlink()
        assert retrieve(mirror, ids([0])).status_code == 500
    assert catalogs[0] == catalogs[1]
    assert list(packages[0].items()) == list(packages[1].items())
    with pytest.raises(ArchiveError, match=r"is .* a mirror"):
        MirrorHoldings(tmp_path / "elsewhere")
    (tmp_path / "packages.jsonl").write_text("{}\n")
    with pytest.raises(ArchiveError, match="damaged"):
        MirrorHoldings(tmp_path)


# Faults of requests


def always(kind: str, **more: float) -> Faults:
    return Faults(transient={kind: 1.0}, retry_after=1, stall_seconds=more.get("stall_seconds", 0.3))


def raw(server: ArchiveServer, detections: list[DetectionId]) -> bytes:
    """All bytes that the server sends until it closes the connection; an OSError if it resets it."""
    address = urlsplit(server.url)
    form = packageset(detections)
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=60) as connection:
        target = f"/csccli/retrieve?version={form['version']}&packageset={form['packageset']}"
        connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_429_and_503_say_when_to_come_back_as_seconds_or_as_a_date() -> None:
    for kind, told in (("429", {"seconds", "date"}), ("503", {"seconds", "date", "nothing"})):
        seen = set()
        with ArchiveServer(TinyHoldings(), faults=always(kind)) as server:
            for obsid in range(40):
                answer = retrieve(server, [DetectionId(obsid, 0, 1)])
                assert answer.status_code == int(kind)
                after = answer.headers.get("Retry-After")
                seen.add("nothing" if after is None else "seconds" if after == "1" else "date")
                if after not in (None, "1"):
                    assert -60 < email.utils.parsedate_to_datetime(after).timestamp() - time.time() < 3
        assert seen == told


def test_a_reset_comes_before_the_answer_or_amid_it() -> None:
    with ArchiveServer(TinyHoldings(), faults=always("reset")) as server:
        for obsid in range(12):
            with pytest.raises(ConnectionResetError):
                raw(server, [DetectionId(obsid, 0, 1)])
        assert {request.status for request in server.log} == {0, 200}


def test_a_truncated_answer_announces_its_full_length() -> None:
    with ArchiveServer(TinyHoldings(), faults=always("truncate")) as server:
        head, _, body = raw(server, ids([0])).partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split()[0])
        assert 0 < len(body) < length
        with pytest.raises(requests.exceptions.RequestException):
            retrieve(server, ids([0]))
        assert server.log[0].size == len(body)


def test_a_silently_truncated_tar_does_not_end() -> None:
    readable = []
    with ArchiveServer(TinyHoldings(), faults=always("truncate_silent")) as server:
        for wanted in ([0], [1], [2], [3], [4], [0, 1], [0, 2], [0, 3], [0, 4], [1, 2]):
            answer = retrieve(server, ids(wanted))
            assert int(answer.headers["Content-Length"]) == len(answer.content)
            assert not answer.content.endswith(bytes(1024))
            try:
                readable.append(len(unpack(answer.content)))
            except tarfile.ReadError:
                readable.append(-1)
        assert "truncate" not in {request.fault for request in server.log}
    assert min(readable) == -1 < max(readable)  # some are cut within a member, some where one ends


def test_a_stall_holds_the_rest_of_the_answer_back() -> None:
    with ArchiveServer(TinyHoldings(), faults=always("stall", stall_seconds=0.5)) as server:
        start = time.monotonic()
        assert len(unpack(retrieve(server, ids([0])).content)) == 3
        assert time.monotonic() - start > 0.45
    with ArchiveServer(TinyHoldings(), faults=always("stall", stall_seconds=60)) as server:
        with pytest.raises(requests.exceptions.RequestException):
            retrieve(server, ids([0]), timeout=0.2)
        start = time.monotonic()
    assert time.monotonic() - start < 30  # it does not wait for the stall


@pytest.mark.parametrize(
    ("kind", "start"), [("html", b"<!DOCTYPE html>"), ("empty", b""), ("error_text", b"Error executing query:")]
)
def test_errors_in_the_guise_of_success(kind: str, start: bytes) -> None:
    with ArchiveServer(TinyHoldings(), faults=always(kind)) as server:
        for answer in (retrieve(server, ids([0])), query(server, QUERY)):
            assert answer.status_code == 200
            assert answer.content[: len(start) or None] == start
        assert [request.fault for request in server.log] == [kind, None, kind]


@pytest.mark.parametrize("kind", TRANSIENT)
def test_the_third_attempt_is_always_spared_even_when_the_whole_query_is_repeated(kind: str) -> None:
    with ArchiveServer(TinyHoldings(), faults=always(kind, stall_seconds=0)) as server:
        for attempt in range(3):
            spared = attempt == 2 or kind == "stall"
            for package in (True, False):
                try:
                    answer = retrieve(server, ids([0])) if package else query(server, QUERY)
                    good = answer.ok and answer.content.endswith((bytes(1024), b"</VOTABLE>\n"))
                except requests.exceptions.RequestException:
                    good = False
                assert good == spared


def test_faults_depend_on_the_seed_and_on_nothing_else() -> None:
    def faults_met(seed: int) -> list[str | None]:
        rates = dict.fromkeys(("503", "html", "empty"), 0.2)
        with ArchiveServer(TinyHoldings(), faults=Faults(seed, rates)) as server:
            for obsid in range(30):
                retrieve(server, [DetectionId(obsid, 0, 1)])
            return [request.fault for request in server.log]

    first = faults_met(1)
    assert first == faults_met(1) != faults_met(2)
    assert set(first) == {None, "503", "html", "empty"}


def test_unknown_faults_and_impossible_rates_are_refused() -> None:
    with pytest.raises(SettingError, match="unknown transient fault '502': choose from 429"):
        Faults(transient={"502": 0.1})
    for rates in ({"omitted": -0.1}, {"omitted": 0.6, "bad_gzip": 0.5}):
        with pytest.raises(SettingError, match="from 0 to 1"):
            Faults(permanent=rates)


# Faults of detections


def test_every_permanent_fault_has_its_share_and_its_reason() -> None:
    faults = Faults(3, permanent=dict.fromkeys(PERMANENT, 0.1))
    detections = [DetectionId(obsid, 0, 1) for obsid in range(4000)]
    share = collections.Counter(map(faults.permanent_of, detections))
    assert all(300 < share[kind] < 500 for kind in PERMANENT)
    assert faults.permanent_of(detections[5]) == faults.permanent_of(detections[5].with_cycle("e1"))


@pytest.mark.parametrize("kind", PERMANENT)
def test_what_permanent_faults_do_to_files(kind: str) -> None:
    faults = Faults(permanent={kind: 1.0})
    with ArchiveServer(TinyHoldings(), faults=faults) as server:
        for detection in ids(range(5)):
            answer = retrieve(server, [detection]).content
            assert answer == retrieve(server, [detection]).content
            served = {name.rpartition("/")[2]: data for name, data in unpack(answer).items()}
            listed = requests.get(f"{server.url}/csccli/browse", packageset([detection]), timeout=60).json()
            affected = faults.kind_of(detection)
            cycles = 2 if detection == INTERLEAVED else 1
            if kind == "gone":
                assert not served
                assert not listed
                continue
            if kind == "omitted" or kind.startswith("missing_"):
                assert len(served) == 2 * cycles
                assert len(listed) == (3 if kind == "omitted" else 2) * cycles
                assert not any(f"_{affected}3" in name for name in served)
                continue
            assert len(served) == len(listed) == 3 * cycles
            for name, data in served.items():
                product = ProductName.parse(name)
                assert product is not None
                sound = fits(product.detection, product.kind)
                if product.kind != affected:
                    assert gzip.decompress(data) == sound
                elif kind == "bad_gzip":
                    with pytest.raises((EOFError, gzip.BadGzipFile, zlib.error)):
                        gzip.decompress(data)
                elif kind == "corrupt_fits":
                    found = gzip.decompress(data)
                    assert len(found) == len(sound)
                    assert b"XTENSION" not in found
                else:
                    found = gzip.decompress(data)
                    assert f"OBS_ID  = '{product.detection.obsid:<8d}'".encode() not in found
                    assert f"REGIONID= '{product.detection.region_id:04d}    '".encode() not in found
                    assert len(found) == len(sound)


# The wire


def test_connections_are_counted_and_kept_alive() -> None:
    with ArchiveServer(TinyHoldings()) as server:
        with requests.Session() as session:
            for _ in range(3):
                session.get(f"{server.url}/csccli/retrieve", params=packageset(ids([0])), timeout=60)
        assert server.max_connections == 1
        for _ in range(20):  # each closes its connection before the next opens one
            retrieve(server, ids([0]))
        assert server.max_connections == 1
        barrier = threading.Barrier(3)

        def ask(_: int) -> None:
            with requests.Session() as session:
                barrier.wait(10)
                session.get(f"{server.url}/csccli/retrieve", params=packageset(ids([0])), timeout=60)
                barrier.wait(10)

        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            list(pool.map(ask, range(3)))
        assert server.max_connections == 3


def test_bandwidth_is_shared_by_all_connections() -> None:
    with ArchiveServer(TinyHoldings(), bytes_per_second=100_000) as server:
        start = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            sizes = list(pool.map(lambda n: len(retrieve(server, ids([n])).content), range(2)))
        elapsed = time.monotonic() - start
    assert elapsed > 0.9 * sum(sizes) / 100_000


def test_requests_are_logged_as_lines_of_json(tmp_path: Path) -> None:
    with ArchiveServer(TinyHoldings(), log=tmp_path / "log.jsonl") as server:
        size = len(retrieve(server, ids([0, 1])).content)
        entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    expected = {"service": "retrieve", "detections": ["100.0.1", "101.0.7"], "status": 200, "fault": None, "size": size}
    assert len(entries) == 1
    assert entries[0].items() >= {**expected, "connections": 1}.items()


def test_a_client_that_leaves_is_no_event(capfd: pytest.CaptureFixture[str]) -> None:
    with ArchiveServer(TinyHoldings(), bytes_per_second=50_000) as server:
        for _ in range(3):
            with pytest.raises(requests.exceptions.RequestException):
                retrieve(server, ids([0, 1, 2]), timeout=0.01)
            with requests.get(f"{server.url}/csccli/retrieve", packageset(ids([3])), stream=True, timeout=60):
                pass
        assert retrieve(server, ids([4])).ok
    assert capfd.readouterr() == ("", "")


def test_a_taken_port_is_refused_in_one_line() -> None:
    with ArchiveServer(TinyHoldings()) as server, pytest.raises(SettingError, match="cannot listen on port"):
        ArchiveServer(TinyHoldings(), port=int(server.url.rpartition(":")[2]))


def test_serve_forever_runs_until_it_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ArchiveServer(TinyHoldings())

    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(server._http, "service_actions", interrupted)
    with pytest.raises(KeyboardInterrupt):
        server.serve_forever()
    with pytest.raises(requests.exceptions.ConnectionError):
        retrieve(server, ids([0]))


def test_the_packages_can_be_read_as_the_builder_reads_them(tmp_path: Path) -> None:
    part = tmp_path / "part.tar"
    with ArchiveServer(TinyHoldings()) as server:
        part.write_bytes(retrieve(server, ids([0])).content)
    assert [file.name for file in members(part)] == [file.name for file in TinyHoldings().files(ids([0])[0])]
