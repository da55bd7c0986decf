"""A server on loopback that answers as the Hugging Face hub does."""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

LFS = '.safetensors', '.bin', '.pth'


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        hub, path = self.server.hub, self.path
        hub.asked.append((path, self.headers.get('Range')))
        if path in hub.refused:
            self.send_error(hub.refused[path])
        elif path not in hub.files:
            self.send_error(404)
        elif path.endswith(LFS) and '/resolve/' in path:
            self._linked(path)
        else:
            self._body(hub.files[path])

    def _linked(self, path):
        data = self.server.hub.files[path]
        digest = hashlib.sha256(data).hexdigest()
        self.server.hub.files[f'/cdn/{digest}'] = data
        self.send_response(302)
        said = self.server.hub.said.get(path, digest)
        self.send_header('X-Linked-Etag', f'"{said}"')
        self.send_header('ETag', '"of-the-link"')
        self.send_header('Location', f'/cdn/{digest}')
        self.send_header('Content-Length', '0')
        self.end_headers()

    def _body(self, data):
        hub, tag = self.server.hub, f'"{hashlib.md5(data).hexdigest()}"'
        start = 0
        if (found := self.headers.get('Range')) and self.headers.get('If-Range') in (None, tag):
            start = int(re.fullmatch(r'bytes=(\d+)-', found)[1])
        if start >= len(data):
            self.send_response(416)
            self.send_header('Content-Length', '0')
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        self.send_header('ETag', tag)
        if start:
            self.send_header('Content-Range', f'bytes {start}-{len(data) - 1}/{len(data)}')
        self.send_header('Content-Length', str(len(data) - start))
        self.end_headers()
        hub.gate.wait(30)
        end = hub.cuts.pop(0) if hub.cuts and len(data) > 1000 else len(data)
        self.wfile.write(data[start:end])
        if end < len(data):
            self.close_connection = True

    def log_message(self, *args):
        pass


@contextmanager
def serving(cache):
    """Files by path, the requests for them, and what goes wrong with them."""
    server = ThreadingHTTPServer(('127.0.0.1', 0), _Handler)
    server.daemon_threads = True
    hub = SimpleNamespace(
        address=f'http://127.0.0.1:{server.server_port}',
        files={},
        asked=[],  # (path, Range)
        cuts=[],  # bytes at which connections that carry a large file are cut
        said={},  # path: another SHA-256 than the right one
        refused={},  # path: HTTP status
        gate=threading.Event(),  # bodies wait for it
        cache=cache,
    )
    hub.gate.set()

    def add(repo, data, config=None, file='model.safetensors', **others):
        folder = f'/{repo}/resolve/main'
        hub.files[f'{folder}/{file}'] = data
        for name, value in {'config': config, **others}.items():
            if value is not None:
                hub.files[f'{folder}/{name}.json'] = json.dumps(value).encode()

    hub.add, server.hub = add, hub
    thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
    thread.start()
    try:
        yield hub
    finally:
        hub.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()
