"""Condense the schemas that tests/deploy/test_manifests.py needs into schemas.json.gz; run it to update them.

    python tests/deploy/vendor_schemas.py FOLDER   # with ray.io_rayjobs.yaml and ray.io_raycronjobs.yaml of KubeRay

The schemas of Kubernetes come from the package kubernetes-validate (Apache-2.0), the others from the CRDs of KubeRay
(Apache-2.0). Descriptions are left out.
"""

import gzip
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

KUBERNETES = {
    ("batch/v1", "CronJob"): "cronjob-batch-v1",
    ("v1", "ConfigMap"): "configmap-v1",
    ("v1", "PersistentVolumeClaim"): "persistentvolumeclaim-v1",
    ("v1", "ServiceAccount"): "serviceaccount-v1",
    ("rbac.authorization.k8s.io/v1", "Role"): "role-rbac-v1",
    ("rbac.authorization.k8s.io/v1", "RoleBinding"): "rolebinding-rbac-v1",
}


def condensed(schema: Any) -> Any:
    """Without descriptions; of a CRD, with the strictness of the API server for unknown fields."""
    if isinstance(schema, list):
        return [condensed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {
        name: condensed(part)
        for name, part in schema.items()
        if not (name == "description" and isinstance(part, str)) and name != "default"
    }
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
    closed = isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema
    if closed and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result["additionalProperties"] = False
    return result


def of_kuberay(folder: Path) -> dict[str, Any]:
    schemas = {}
    for path in sorted(folder.glob("ray.io_*.yaml")):
        crd = yaml.load(path.read_text(), yaml.CSafeLoader)
        newest = next(entry for entry in crd["spec"]["versions"] if entry["storage"])
        schema = condensed(newest["schema"]["openAPIV3Schema"])
        schema["properties"]["metadata"] = {"type": "object"}
        schema["properties"].pop("status", None)
        schemas[f"ray.io/{newest['name']} {crd['spec']['names']['kind']}"] = schema
    return schemas


def of_kubernetes() -> dict[str, Any]:
    import kubernetes_validate

    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    newest = max(
        folder.glob("v*-local-strict"), key=lambda path: [int(part) for part in path.name[1:].split("-")[0].split(".")]
    )
    return {
        f"{api} {kind}": inlined(json.loads((newest / f"{name}.json").read_text()), newest)
        for (api, kind), name in KUBERNETES.items()
    }


def inlined(schema: Any, folder: Path) -> Any:
    """The schema with its references replaced by what they name."""
    definitions = json.loads((folder / "_definitions.json").read_text())["$defs"]

    def walk(part: Any) -> Any:
        if isinstance(part, list):
            return [walk(entry) for entry in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            return walk(definitions[part["$ref"].rpartition("/")[2]])
        return {
            name: walk(entry)
            for name, entry in part.items()
            if not (name == "description" and isinstance(entry, str)) and not name.startswith("x-kubernetes")
        }

    return walk(schema)


if __name__ == "__main__":
    about = {"kubernetes-validate": version("kubernetes-validate")}
    bundle = {"versions": about, "schemas": {**of_kuberay(Path(sys.argv[1])), **of_kubernetes()}}
    data = json.dumps(bundle, sort_keys=True, separators=(",", ":")).encode()
    (Path(__file__).parent / "schemas.json.gz").write_bytes(gzip.compress(data, 9, mtime=0))
