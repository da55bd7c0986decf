"""A bucket of Google's object storage on loopback, as far as tensorstore asks for it."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import parse_qs, unquote, urlsplit


class _Bucket(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    wbufsize, disable_nagle_algorithm = -1, True  # an answer is one packet

    def answer(self, status, data=b'', generation=0):
        self.send_response(self.server.bucket.refusal or status)
        self.send_header('Content-Length', str(len(data)))
        self.send_header('x-goog-generation', str(generation))
        self.end_headers()
        self.wfile.write(data)

    def asked(self):
        """The object, and what else is asked."""
        url = urlsplit(self.path)
        name = unquote(url.path.partition('/o/')[2])
        return name, {key: values[0] for key, values in parse_qs(url.query).items()}

    def do_GET(self):
        name, query = self.asked()
        objects = self.server.bucket.objects
        if not name:
            first, stop = query.get('startOffset', ''), query.get('endOffset', '\uffff')
            items = [told(n, *o) for n, o in sorted(objects.items()) if first <= n < stop]
            self.answer(200, json.dumps({'items': items}).encode())
        elif name not in objects:
            self.answer(404)
        elif query.get('ifGenerationNotMatch') == str(objects[name][1]):
            self.answer(304)
        else:
            self.answer(200, *objects[name])

    def do_POST(self):
        name = self.asked()[1]['name']
        data = self.rfile.read(int(self.headers['Content-Length']))
        self.change(name, lambda bucket: bucket.objects.update({name: (data, bucket.count)}))

    def do_DELETE(self):
        name = self.asked()[0]
        self.change(name, lambda bucket: bucket.objects.pop(name, None))

    def change(self, name, change):
        bucket, query = self.server.bucket, self.asked()[1]
        with bucket.lock:
            _, generation = bucket.objects.get(name, (b'', 0))
            if query.get('ifGenerationMatch', str(generation)) != str(generation):
                return self.answer(412)
            if not bucket.refusal:
                bucket.count += 1
                change(bucket)
        self.answer(200, json.dumps(told(name, *bucket.objects.get(name, (b'', 0)))).encode())

    def log_message(self, *_):
        pass


def told(name, data, generation):
    return {'name': name, 'size': str(len(data)), 'generation': str(generation)}


@contextmanager
def bucket_server():
    """Yields its `url`, its `objects` {name: (bytes, generation)}, and the `refusal` of all."""
    with ThreadingHTTPServer(('localhost', 0), _Bucket) as server:
        url = f'http://localhost:{server.server_port}'
        server.bucket = SimpleNamespace(
            url=url, objects={}, refusal=0, count=0, lock=threading.Lock()
        )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.bucket
        server.shutdown()
