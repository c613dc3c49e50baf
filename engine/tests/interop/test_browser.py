"""Chromium, headless: a page of another origin opens a WebSocket with nothing but protocol names
as credentials, gets its cookie, and may read the gateway's errors (contract 3.2.1, 3.5, 3.12)."""

import http.server
import json
import os
import shutil
import signal
import subprocess
import threading

import pytest

from gateway import FUNCTION, KEY

CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium") or "chromium"

PAGE = """<!doctype html><title>page</title><script>
const gateway = "GATEWAY", credentials = ["authorization.KEY", "function-id.FUNCTION"];

function talk(protocols) {
  return new Promise(resolve => {
    const seen = {opened: false, texts: [], binary: null};
    const socket = new WebSocket("ws://" + gateway + "/ws", protocols);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      seen.opened = true; seen.protocol = socket.protocol;
      socket.send("hello from a page");
      socket.send("x".repeat(200000));
      socket.send(new Uint8Array([0, 1, 2, 255]));
    };
    socket.onmessage = event => {
      if (typeof event.data === "string") {
        seen.texts.push([event.data.length, event.data.slice(0, 17)]);
      } else {
        seen.binary = Array.from(new Uint8Array(event.data));
        socket.close(4321, "done");
      }
    };
    socket.onclose = event => {
      seen.code = event.code;
      seen.clean = event.wasClean;
      resolve(seen);
    };
  });
}

async function ask(path, options) {
  try {
    const answer = await fetch("http://" + gateway + path, options);
    return {status: answer.status, text: await answer.text()};
  } catch (error) { return {failed: String(error)}; }
}

(async () => {
  const result = {};
  result.socket = await talk([...credentials, "chat"]);
  result.cookie = document.cookie;
  result.refused = await talk(["authorization.nobody", "function-id.FUNCTION", "chat"]);
  result.unauthorised = await ask("/echo", {method: "POST", body: "x"});
  result.unknown = await ask("/echo", {method: "POST", body: "x",
    headers: {"authorization": "Bearer nobody", "function-id": "FUNCTION"}});
  result.preflighted = await ask("/echo", {method: "DELETE",
    headers: {"authorization": "Bearer nobody", "function-id": "FUNCTION"}});
  await fetch("/result", {method: "POST", body: JSON.stringify(result)});
})();
</script>"""


class Site(http.server.ThreadingHTTPServer):
    """Serves the page (and another, perhaps) and takes its result. `noted` is called with
    what the page asks for as `/note`, which is answered at once, or as `/wait`, which is answered
    after it."""

    def __init__(self, page, elsewhere="", host="127.0.0.1", noted=None):
        self.pages = {"/": page, "/elsewhere": elsewhere}
        self.result, self.done, self.noted = None, threading.Event(), noted
        super().__init__((host, 0), Visit)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Visit(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = self.server.pages.get(self.path, "").encode()
        if self.server.noted and self.path.startswith(("/note", "/wait")):
            body = b"noted"
            telling = threading.Thread(target=self.server.noted, args=(self.path,), daemon=True)
            telling.start()
            if self.path.startswith("/wait"):
                telling.join()
        self.send_response(200 if body else 404)
        self.send_header("content-type", "text/html")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        octets = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(204)
        self.end_headers()
        self.server.result = json.loads(octets)
        self.server.done.set()

    def log_message(self, *_):
        pass


def visit(page, directory, launcher=(), **options):
    """What the page reports from within a fresh browser."""
    with Site(page, **options) as site:
        host, port = site.server_address
        with open(directory / "chromium.log", "wb") as log:
            browser = subprocess.Popen(
                [*launcher, CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
                 "--disable-dev-shm-usage", f"--user-data-dir={directory / 'profile'}",
                 "--remote-debugging-port=0", f"http://{host}:{port}/"],
                stdout=log, stderr=log, start_new_session=True)
        try:
            arrived = site.done.wait(200)
        finally:
            # With all that it has started: they would outlive it.
            os.killpg(browser.pid, signal.SIGKILL)
            browser.wait()
            site.shutdown()
        assert arrived, (directory / "chromium.log").read_text(errors="replace")[-2000:]
        return site.result


@pytest.mark.alone
def test_a_page_opens_a_websocket_and_reads_errors(gateway, tmp_path):
    host, port = gateway.client
    page = PAGE.replace("GATEWAY", f"{host}:{port}").replace("KEY", KEY) \
        .replace("FUNCTION", FUNCTION)
    seen = visit(page, tmp_path)
    socket = seen["socket"]
    assert socket["opened"] and socket["protocol"] == "chat", socket
    assert socket["texts"] == [[17, "hello from a page"], [200_000, "x" * 17]], socket
    assert socket["binary"] == [0, 1, 2, 255], socket
    assert socket["code"] == 4321 and socket["clean"], socket
    # Cookies know no ports: the page's host is the gateway's.
    assert "nvcf-request-id=" in seen["cookie"], seen["cookie"]
    assert not seen["refused"]["opened"] and seen["refused"]["code"] == 1006, seen["refused"]
    assert seen["unauthorised"]["status"] == 401, seen["unauthorised"]
    assert "no authorization was passed" in seen["unauthorised"]["text"], seen["unauthorised"]
    for kind in ("unknown", "preflighted"):
        assert seen[kind].get("status") == 401, (kind, seen[kind])
        assert "failed to open stateful work request" in seen[kind]["text"], seen[kind]
