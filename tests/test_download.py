import hashlib
import http.server
import threading
from pathlib import Path

import pytest
import tiny_cifar10 as tiny

from resnet_jax.data import download, sources
from resnet_jax.data.download import Unavailable
from resnet_jax.errors import UserError


class Host(http.server.BaseHTTPRequestHandler):
    """Serves `content`, each request at most `budget` bytes of it; notes what was asked for."""

    content = b""
    budget = 10**9
    honours_range = True
    status = 200
    asked: list

    def do_GET(self):
        requested = self.headers.get("Range")
        self.asked.append(requested)
        start = 0
        if requested and self.honours_range:
            start = int(requested.removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else self.status)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start : start + self.budget])

    def log_message(self, *_):
        pass


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host of the archive of the tiny dataset, which the package takes for the original."""
    content = tiny.install(monkeypatch.setattr)
    archive = tiny.write_tar(tmp_path / "source.tar.gz", tiny.files(content)).read_bytes()
    handler = type("Handler", (Host,), {"content": archive, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/cifar-10-binary.tar.gz"
    remote = download.Remote(url, len(archive), hashlib.md5(archive).hexdigest())
    monkeypatch.setattr(sources, "ARCHIVE", remote)
    monkeypatch.setattr(download, "_CHUNK", 1000)
    handler.batches = content
    yield handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def root(tmp_path):
    return tmp_path / "cache"


def part(root):
    return root / "cifar10" / "downloads" / "cifar-10-binary.tar.gz.part"


def fetched(root, progress=lambda *_: None):
    return sources.fetch("archive", str(root), lambda line: None, progress)[0]


def test_downloads_the_archive_and_reports_its_progress(host, root):
    seen = []
    content = fetched(root, lambda *event: seen.append(event))
    assert content == host.batches
    assert host.asked == [None]
    done = [event[1] for event in seen]
    assert done == sorted(done) and done[-1] == len(host.content) and len(done) > 10
    assert not part(root).exists()


def test_goes_on_when_the_connection_is_cut(host, root):
    host.budget = len(host.content) // 3
    assert fetched(root) == host.batches
    starts = [0, *(i * host.budget for i in range(1, 4))]
    assert host.asked == [None, *(f"bytes={start}-" for start in starts[1 : len(host.asked)])]
    assert len(host.asked) in (3, 4)


def test_goes_on_after_the_process_was_killed(host, root):
    part(root).parent.mkdir(parents=True)
    part(root).write_bytes(host.content[:4321])
    assert fetched(root) == host.batches
    assert host.asked == ["bytes=4321-"]


def test_a_download_complete_but_not_yet_read_is_not_repeated(host, root):
    part(root).parent.mkdir(parents=True)
    part(root).write_bytes(host.content)
    assert fetched(root) == host.batches
    assert host.asked == []


def test_starts_over_with_a_host_that_knows_no_ranges(host, root):
    host.honours_range = False
    part(root).parent.mkdir(parents=True)
    part(root).write_bytes(b"x" * 4321)
    assert fetched(root) == host.batches


@pytest.mark.parametrize("size", [4321, "same", "longer"])
def test_a_false_part_is_never_trusted(host, root, size):
    length = {"same": len(host.content), "longer": len(host.content) + 5}.get(size, size)
    part(root).parent.mkdir(parents=True)
    part(root).write_bytes(b"x" * length)
    if size == "longer":
        assert fetched(root) == host.batches
        return
    with pytest.raises(Unavailable, match=r"is altered: expected MD5 .*found .*deleted"):
        fetched(root)
    assert not part(root).exists()
    assert fetched(root) == host.batches


def test_another_page_in_place_of_the_archive(host, root):
    part(root).parent.mkdir(parents=True)
    part(root).write_bytes(host.content[:4321])
    host.content = b"<html>please log in</html>"
    host.honours_range = False
    with pytest.raises(Unavailable, match="is not the file: 26 bytes"):
        fetched(root)
    assert part(root).stat().st_size == 4321


def test_a_cut_connection_keeps_what_came(host, root):
    host.budget = 0
    part(root).parent.mkdir(parents=True)
    part(root).write_bytes(host.content[:4321])
    with pytest.raises(Unavailable, match=r"closed early; .* kept, run again to go on"):
        fetched(root)
    assert part(root).read_bytes() == host.content[:4321]


def test_no_such_page(host, root):
    host.status = 404
    with pytest.raises(Unavailable, match="HTTP Error 404: Not Found"):
        fetched(root)


def test_no_network(host, root, monkeypatch):
    url = "http://127.0.0.1:9/cifar-10"
    monkeypatch.setattr(sources, "ARCHIVE", sources.ARCHIVE._replace(url=url))
    with pytest.raises(Unavailable, match=f"{url}: ") as raised:
        fetched(root)
    assert "\n" not in str(raised.value)


def test_a_full_disk_leaves_no_part(host, root, monkeypatch):
    real_open = Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, chunk):
            self.file.write(chunk[:10])
            raise OSError(28, "No space left on device")

    def open_full(path, mode="r", *arguments, **options):
        file = real_open(path, mode, *arguments, **options)
        return Full(file) if path.name.endswith(".part") and "w" in mode else file

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(UserError, match="No space left on device") as raised:
        fetched(root)
    assert not isinstance(raised.value, Unavailable)
    monkeypatch.undo()
    assert not part(root).exists()


def test_plain_progress_is_a_line_a_quarter():
    lines = []
    progress = download.PlainProgress(lines.append)
    for done in range(101):
        progress("x.tar.gz", done * 10**6, 100 * 10**6)
    assert lines == [f"downloading x.tar.gz: {done} of 100 MB" for done in (0, 25, 50, 75, 100)]
