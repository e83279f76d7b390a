"""Prometheus scrapes the gateway by deploy/prometheus.yml, and every expression of the Grafana dashboard has a result."""

import json
import re
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request

from gateway import API_TOKEN, PROJECT, environment, wait_until

# A vector of the metrics of the gateway: the name, and what selects among its series.
SELECTOR = re.compile(r"\b(?:millstream|process)_[a-z_]+(?:\{[^}]*\})?")
# A panel that shows problems only has nothing to show without any.
THRESHOLD = re.compile(r"\s*>\s*0$")


class Prometheus:
    def __init__(self, gateway, folder):
        token = folder / "api-token"
        token.write_text(API_TOKEN)
        # The file that is deployed, with the address and the token of this gateway, and less patience.
        text = (PROJECT / "deploy/prometheus.yml").read_text()
        for deployed, here in [
            ("127.0.0.1:8080", gateway.address),
            ("/run/secrets/monitoring_token", str(token)),
            ("scrape_interval: 5s", "scrape_interval: 1s"),
        ]:
            assert deployed in text, f"deploy/prometheus.yml does not contain {deployed}"
            text = text.replace(deployed, here)
        config = folder / "prometheus.yml"
        config.write_text(text)
        subprocess.run(["promtool", "check", "config", config], check=True, stdout=subprocess.DEVNULL)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.log = (folder / "prometheus.log").open("w+")
        command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'prometheus'}"]
        self.process = subprocess.Popen(
            [*command, f"--web.listen-address={self.address}"], stdout=self.log, stderr=self.log, env=environment()
        )

    def query(self, expression):
        """Returns the samples of an instant query; None while Prometheus starts. Fails if the expression is invalid."""
        url = f"http://{self.address}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(url, timeout=10) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise SystemExit(f"Prometheus refuses {expression}: {error.read().decode()}") from None
        except OSError:
            if self.process.poll() is not None:
                self.log.seek(0)
                raise SystemExit(f"Prometheus ended:\n{self.log.read()}") from None
            return None
        assert not answer.get("warnings"), f"{expression}: {answer['warnings']}"
        return answer["data"]["result"]

    def stop(self):
        self.process.terminate()
        self.process.wait(30)
        self.log.close()


def check_names(gateway):
    """`promtool check metrics`: names and types by Prometheus' conventions."""
    status, metrics = gateway.get("/metrics")
    assert status == 200, status
    checked = subprocess.run(["promtool", "check", "metrics"], input=metrics, capture_output=True, text=True, check=False)
    if checked.returncode != 0 or checked.stderr.strip():
        raise SystemExit(f"promtool check metrics: {checked.stdout}{checked.stderr}")
    families = metrics.count("# TYPE ")
    print(f"promtool: {families} metric families keep to the conventions")


def expressions():
    dashboard = json.loads((PROJECT / "deploy/grafana-dashboard.json").read_text())
    return [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel["targets"]]


def check_dashboard(prometheus):
    """Every expression of the dashboard, and every metric in it, has a result."""
    for title, expression in expressions():
        selectors = SELECTOR.findall(expression)
        assert selectors, f"{title}: {expression} names no metric"
        for part in [*selectors, THRESHOLD.sub("", expression)]:
            wait_until(lambda part=part: prometheus.query(part), f"a result of `{part}` (panel {title})")
    print(f"Prometheus: {len(expressions())} expressions of the dashboard have results")
