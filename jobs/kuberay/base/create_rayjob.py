"""Create the RayJob of a night from a suspended template, and delete those of old nights. Runs in a pod of the CronJob.

The name `factory-DATE` is the lock: if it exists, the night has been started, and nothing happens. Exit codes: 0 if it
was created or exists, 2 if the template, the permissions or the environment are wrong, 75 if the API server does not
respond.
"""

import argparse
import json
import os
import re
import ssl
import sys
import urllib.error
import urllib.request
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
NIGHT = "factory/night"
DONE, BAD_INPUT, TRY_AGAIN = 0, 2, 75


def night_of(job: str, zone: ZoneInfo) -> str:
    """The date of the night that a Job belongs to.

    Kubernetes names the Jobs of a CronJob NAME-MINUTES, after the scheduled time in minutes since 1970. The name stays
    the same when the Job starts late or is retried after midnight. NAME-YYYY-MM-DD, given by hand, repeats a night.
    """
    if by_hand := re.search(r"-(\d{4}-\d\d-\d\d)$", job):
        return datetime.strptime(by_hand[1], "%Y-%m-%d").date().isoformat()
    if scheduled := re.search(r"-(\d{8,})$", job):
        return datetime.fromtimestamp(60 * int(scheduled[1]), zone).date().isoformat()
    raise ValueError(f"the job {job!r} names no night; create it as NAME-YYYY-MM-DD.")


def rayjob_of(template: dict[str, Any], night: str) -> dict[str, Any]:
    """The RayJob of a night: the template with a name and a date, not suspended."""
    spec = {**template["spec"], "suspend": False, "entrypoint": template["spec"]["entrypoint"].replace("$NIGHT", night)}
    if night not in spec["entrypoint"]:
        raise ValueError(f"the entrypoint of {template['metadata']['name']} does not contain $NIGHT.")
    labels = {**template["metadata"].get("labels", {}), NIGHT: night}
    metadata = {"name": f"factory-{night}", "namespace": template["metadata"]["namespace"], "labels": labels}
    return {"apiVersion": template["apiVersion"], "kind": template["kind"], "metadata": metadata, "spec": spec}


def outdated(jobs: list[dict[str, Any]], keep: int) -> list[str]:
    """The names of finished RayJobs beyond the last `keep` nights."""
    nights = sorted(jobs, key=lambda job: str(job["metadata"]["labels"][NIGHT]), reverse=True)
    finished = ("Complete", "Failed", "ValidationFailed")
    # A RayJob that KubeRay has not seen yet has no status.
    return [
        job["metadata"]["name"] for job in nights[keep:] if job.get("status", {}).get("jobDeploymentStatus") in finished
    ]


class Api:
    """The RayJobs of one namespace."""

    def __init__(self, server: str, namespace: str, token: str, context: ssl.SSLContext | None) -> None:
        self._url = f"{server}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
        self._token, self._context = token, context

    def call(self, method: str, path: str = "", body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The decoded response; urllib.error.HTTPError for a refusal."""
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=30, context=self._context) as response:
            return dict(json.load(response))


def api_of_the_cluster(server: str | None) -> Api:
    """The API server at a URL, or that of the pod's cluster, with the pod's service account."""
    server = server or f"https://{os.environ['KUBERNETES_SERVICE_HOST']}:{os.environ['KUBERNETES_SERVICE_PORT']}"
    account = Path(os.environ.get("SERVICE_ACCOUNT", ACCOUNT))
    context = ssl.create_default_context(cafile=str(account / "ca.crt")) if server.startswith("https:") else None
    return Api(server, os.environ["NAMESPACE"], (account / "token").read_text().strip(), context)


def start_night(api: Api, template: str, night: str, keep: int) -> None:
    """Create the RayJob of a night unless it exists; then delete old ones, for which a failure is only reported."""
    job = rayjob_of(api.call("GET", f"/{template}"), night)
    try:
        api.call("POST", body=job)
        print(f"created {job['metadata']['name']}")
    except urllib.error.HTTPError as error:
        if error.code != 409:
            raise
        print(f"{job['metadata']['name']} exists: this night has been started")
    try:
        for name in outdated(api.call("GET", f"?labelSelector={NIGHT}")["items"], keep):
            api.call("DELETE", f"/{name}")
            print(f"deleted {name}")
    except (OSError, KeyError) as error:
        print(f"old RayJobs were not deleted: {error}", file=sys.stderr)


def main() -> int:
    """Read the options and the pod's environment, start the night, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--template", default="factory-template", help="name of the suspended RayJob")
    parser.add_argument("--keep", type=int, default=14, help="nights whose RayJobs are kept")
    parser.add_argument("--server", help="URL of the API server; by default that of the pod's cluster")
    options = parser.parse_args()
    try:
        night = night_of(os.environ["JOB_NAME"], ZoneInfo(os.environ.get("TIME_ZONE", "UTC")))
        start_night(api_of_the_cluster(options.server), options.template, night, options.keep)
    except urllib.error.HTTPError as error:
        message = error.read().decode(errors="replace")[:500]
        print(f"the API server refused with {error.code}: {message}", file=sys.stderr)
        return TRY_AGAIN if error.code >= 500 or error.code == 429 else BAD_INPUT
    except (ValueError, KeyError, FileNotFoundError) as error:
        print(f"cannot create the RayJob: {error}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        print(f"the API server does not respond: {error}", file=sys.stderr)
        return TRY_AGAIN
    return DONE


if __name__ == "__main__":
    sys.exit(main())
