"""What operators use beside the pages: API description, metrics, dashboard and the commands of the documentation, each
checked by a program that is not ours, or run. One gateway serves all of them.

Usage: python operations.py GATEWAY_BINARY
"""

import sys
import tempfile
from pathlib import Path

import api
import commands
import prometheus
from gateway import Gateway, wait_until


def main(binary):
    with tempfile.TemporaryDirectory(prefix="millstream-operations-") as folder:
        folder = Path(folder)
        gateway = Gateway(Path(binary).resolve(), folder)
        scraper = None
        try:
            scraper = prometheus.Prometheus(gateway, folder)
            api.check_document(gateway, folder)
            # Until its source plays, a stream has nothing that can be watched.
            wait_until(lambda: '"live":true' in gateway.get("/api/v1/streams/live")[1], "the stream `live`")
            gateway.watch("live")
            commands.check_commands(gateway, folder)
            prometheus.check_names(gateway)
            prometheus.check_dashboard(scraper)
            # Last: it also ends sessions and stops sources.
            api.check_behaviour(gateway, folder)
        finally:
            if scraper:
                scraper.stop()
            gateway.stop()
    print("operations: all checks passed")


main(sys.argv[1])
