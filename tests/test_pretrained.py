"""Published weights are downloaded once, and checked by the digest in their names."""

import concurrent.futures
import functools
import hashlib
import http.server
import threading

import pytest

from resnet_jax.data import cache, download
from resnet_jax.errors import UserError
from resnet_jax.weights import pretrained
from resnet_jax.weights.info import bundled


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host of one file, for vgg16; returns its path."""
    folder = tmp_path / "host"
    folder.mkdir()
    content = bytes(range(256)) * 100
    file = folder / f"vgg16-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    file.write_bytes(content)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    monkeypatch.setattr(handler.func, "log_message", lambda *_: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(pretrained, "URL", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setitem(pretrained.FILES, "vgg16", file.name)
    monkeypatch.setattr(cache, "default_cache_dir", lambda: tmp_path / "cache")
    yield file
    server.shutdown()


def fetched():
    return pretrained.weights_file("torchvision", "vgg16", print)


def test_downloaded_once_into_a_folder_of_its_own(host, tmp_path):
    content = host.read_bytes()
    path = fetched()
    assert path.read_bytes() == content
    assert path == tmp_path / "cache" / "weights" / host.name
    assert not list(path.parent.rglob("*.part"))
    host.unlink()
    assert fetched().read_bytes() == content


def test_two_processes_do_not_append_to_one_part(host, monkeypatch):
    pool = concurrent.futures.ThreadPoolExecutor(4)
    requests, complete = [], download.complete
    monkeypatch.setattr(
        download, "complete", lambda *args: (requests.append(args), complete(*args))
    )
    paths = {future.result() for future in [pool.submit(fetched) for _ in range(4)]}
    assert [path.read_bytes() for path in paths] == [host.read_bytes()]
    assert len(requests) == 1


def test_altered_file_is_refused(host):
    host.write_bytes(host.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match="altered: expected SHA256"):
        fetched()


def test_missing_files_and_an_unknown_model(host, tmp_path):
    host.unlink()
    with pytest.raises(UserError, match=r"404.*--config.init.weights=FILE"):
        fetched()
    with pytest.raises(UserError, match="no weights for cnn"):
        pretrained.weights_file("torchvision", "cnn", print)
    for path in (tmp_path / "none.pth", tmp_path, "a" * 5000, "\0"):
        with pytest.raises(UserError, match=r"field init\.weights: there is no file"):
            pretrained.weights_file(str(path), "vgg16", print)
    assert pretrained.weights_file("cnn", "cnn", print) == bundled()["cnn"]
    (tmp_path / "mine.pth").touch()
    path = pretrained.weights_file(str(tmp_path / "mine.pth"), "vgg16", print)
    assert path == tmp_path / "mine.pth"
