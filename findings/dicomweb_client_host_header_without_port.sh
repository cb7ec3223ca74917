#!/usr/bin/env bash
# One expects an HTTP client to name host and port in its Host header, as requests does. dicomweb-client sets the header
# itself, from the host name alone. An archive on another port than 80 that builds the addresses in its answers from it
# (RetrieveURL of QIDO-RS and STOW-RS; Orthanc's DICOMweb plugin does) then gives addresses without the port, which
# cannot be followed. Two real things are needed to see it: with plain requests the same archive answers rightly.
# Seen with dicomweb-client 0.61.2, requests 2.32.5 on Python 3.11, 29 Nov 2026.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "dicomweb-client==0.61.2" "requests==2.32.5" 2>/dev/null
cat > "$folder/try.py" <<'PYTHON'
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version

import requests
from dicomweb_client.api import DICOMwebClient


class Archive(BaseHTTPRequestHandler):
    """Answers a query with one study whose RetrieveURL begins with the host that was asked, as archives do."""

    def do_GET(self) -> None:
        address = f"http://{self.headers['Host']}/dicom-web/studies/1.2.3"
        body = json.dumps([{"00081190": {"vr": "UR", "Value": [address]}}]).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/dicom+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


server = HTTPServer(("127.0.0.1", 0), Archive)
threading.Thread(target=server.serve_forever, daemon=True).start()
root = f"http://127.0.0.1:{server.server_port}/dicom-web"
plain = requests.get(f"{root}/studies", timeout=10).json()[0]["00081190"]["Value"][0]
client = DICOMwebClient(root).search_for_studies()[0]["00081190"]["Value"][0]
hide = lambda text: text.replace(str(server.server_port), "PORT")
print("dicomweb-client", version("dicomweb-client"), "requests", version("requests"))
print("requests:       ", hide(plain))
print("dicomweb-client:", hide(client))
assert hide(plain) == "http://127.0.0.1:PORT/dicom-web/studies/1.2.3"
assert client == "http://127.0.0.1/dicom-web/studies/1.2.3", "the header has the port now"
PYTHON
"$folder/venv/bin/python" "$folder/try.py"
