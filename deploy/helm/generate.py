#!/usr/bin/env python3
"""generate.py CHART: writes what the chart has in common with deploy/base, from there.

The objects are those of deploy/base, with what may be set put in place of what stands there.
Hand-written in the chart are the settings (templates/settings.yaml), values and their schema.
A text that is to be replaced and is not there, or is there more often, is an error here.
"""

import shutil
import sys
from pathlib import Path

DEPLOY = Path(__file__).resolve().parent.parent
BASE = DEPLOY / "base"
NAMED = "# Generated from deploy/base/{} by deploy/generate.sh: change that, not this.\n"

# Rolls the pods when a setting changes, as the hash in the name does with kustomize.
ROLL = """    metadata:
      annotations:
        checksum/settings: {{ print (include "viaduct.settings" .) (.Files.Get "10-viaduct.conflist") | sha256sum }}
      labels: {"""
IMAGE = ("image: viaduct\n", 'image: {{ include "viaduct.image" . }}\n')
NO_TOKEN = '\n{{- if ne .Values.datastore "kube" }}\nautomountServiceAccountToken: false\n{{- end }}'
NAMESPACE = ("namespace: viaduct-system", "namespace: {{ .Release.Namespace }}")
WITH_CONTROLLER = '{{{{- if ne .Values.nodeCidrs "adopt" }}}}\n{}\n{{{{- end }}}}'
WITH_API = '{{{{- if eq .Values.datastore "kube" }}}}\n{}\n{{{{- end }}}}\n'


def replaced(text: str, what: str, by: str, times: int = 1) -> str:
    if text.count(what) != times:
        sys.exit(f"deploy/helm/generate.py: {what!r} stands {text.count(what)} times, not {times}")
    return text.replace(what, by)


def rule_for(mode: str, verb: str, group: str, resource: str) -> str:
    """A permission that only one way of using the Nodes' pod CIDRs needs."""
    return (
        f'{{{{- if eq .Values.nodeCidrs "{mode}" }}}}\n'
        f'- apiGroups: [{group}]\n  resources: [{resource}]\n  verbs: [{verb}]\n'
        "{{- end }}"
    )


def agent(text: str) -> str:
    text = replaced(text, *IMAGE, times=3)
    text = replaced(text, "metadata:\n  name: viaduct-agent\n---", f"metadata:\n  name: viaduct-agent{NO_TOKEN}\n---")
    text = replaced(text, "    metadata:\n      labels: {", ROLL)
    text = replaced(text, "maxUnavailable: 10%", "maxUnavailable: {{ .Values.agent.maxUnavailable }}")
    text = resources(text, "agent")
    text = replaced(text, "{path: /opt/cni/bin,", "{path: {{ .Values.cni.binDir | quote }},")
    return replaced(text, "{path: /etc/cni/net.d,", "{path: {{ .Values.cni.confDir | quote }},")


def controller(text: str) -> str:
    text = replaced(text, *IMAGE)
    text = replaced(text, "metadata:\n  name: viaduct-controller\n---", f"metadata:\n  name: viaduct-controller{NO_TOKEN}\n---")
    text = replaced(text, "    metadata:\n      labels: {", ROLL)
    text = replaced(text, "replicas: 2 ", "replicas: {{ .Values.controller.replicas }} ")
    text = resources(text, "controller")
    return WITH_CONTROLLER.format(text.rstrip("\n")) + "\n"


def resources(text: str, whose: str) -> str:
    """In place of what the base requests for the container of that name."""
    head, tail = text.split(f"\n      - name: {whose}\n", 1)
    start = tail.index("        resources:\n")
    end = tail.index("\n", tail.index("          requests:", start)) + 1
    ours = f"        resources: {{{{ toJson .Values.{whose}.resources }}}}\n"
    return f"{head}\n      - name: {whose}\n{tail[:start]}{ours}{tail[end:]}"


def rbac(text: str) -> str:
    text = replaced(text, *NAMESPACE, times=text.count(NAMESPACE[0]))
    documents = []
    for document in text.rstrip("\n").split("\n---\n"):
        if "\nkind: ClusterRole\n" in document and "  name: viaduct-agent\n" in document:
            document += "\n" + rule_for("adopt", "create", "viaduct.dev", "addressblocks")
        if "\nkind: ClusterRole\n" in document and "  name: viaduct-controller\n" in document:
            document += "\n" + rule_for("publish", "patch", '""', "nodes")
        if "\nmetadata:\n  name: viaduct-controller\n" in document:
            document = WITH_CONTROLLER.format(document)
        documents.append(document)
    return WITH_API.format("\n---\n".join(documents))


def policy(text: str) -> str:
    return WITH_API.format(text.rstrip("\n"))


def main() -> None:
    chart = Path(sys.argv[1])
    for name, change in {"agent": agent, "controller": controller, "rbac": rbac, "policy": policy}.items():
        source = f"{name}.yaml"
        text = change((BASE / source).read_text())
        (chart / "templates" / source).write_text(NAMED.format(source) + text)
    shutil.copyfile(BASE / "10-viaduct.conflist", chart / "10-viaduct.conflist")
    (chart / "crds").mkdir(exist_ok=True)
    for definition in sorted((DEPLOY / "crds").glob("*.yaml")):
        shutil.copyfile(definition, chart / "crds" / definition.name)


main()
