"""Published weights are downloaded once, and checked by the digest in their names."""

import functools
import hashlib
import http.server
import threading

import pytest

from resnet_jax.data import cache
from resnet_jax.errors import UserError
from resnet_jax.weights import pretrained


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
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(pretrained, "URL", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setitem(pretrained.FILES, "vgg16", file.name)
    monkeypatch.setattr(cache, "default_cache_dir", lambda: tmp_path / "cache")
    yield file
    server.shutdown()


def test_downloaded_once(host):
    content = host.read_bytes()
    assert pretrained.torchvision_file("vgg16", print).read_bytes() == content
    host.unlink()
    assert pretrained.torchvision_file("vgg16", print).read_bytes() == content


def test_altered_file_is_refused(host):
    host.write_bytes(host.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match="altered: expected SHA256"):
        pretrained.torchvision_file("vgg16", print)


def test_missing_file_and_unknown_model(host):
    host.unlink()
    with pytest.raises(UserError, match=r"404.*--config.init.weights=FILE"):
        pretrained.torchvision_file("vgg16", print)
    with pytest.raises(UserError, match="no weights for cnn"):
        pretrained.torchvision_file("cnn", print)
