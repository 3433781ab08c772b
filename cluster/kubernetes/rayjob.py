"""`python -m cluster submit JOB --kubernetes`: a RayJob with the same command line,
followed to its end and its exit code.

From a template (a RayJob's YAML, such as `kubectl kustomize` prints), or a small one made here for an image. KubeRay
makes the Ray cluster, submits the command to it and takes the cluster away again;
the job is KubeRay's, and Ctrl-C ends the following only.
"""
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

import importlib.metadata
import math
import re
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

from cluster.core import submission
from cluster.core.background import in_background, logged
from cluster.core.documents import MOST_YAML_BYTES, DocumentError, parse_yaml_documents, read_bounded
from cluster.core.errors import ClusterError, ConfigError, StoppedError
from cluster.core.job_command import command_of
from cluster.core.loop_clock import LoopClock
from cluster.core.ray_settings import RAY_SETTINGS
from cluster.core.submission import FOLLOWING_ENDED, LOST_AFTER_S, as_shell
from cluster.kubernetes.client import Kube, Object
from cluster.kubernetes.status import read_kube_status, state_of

T = TypeVar("T")
_POLL_S = 2.0
_EXPLAIN_AFTER_S = 20.0
_LONGEST_NAME = 47
"""KubeRay adds to it what makes the names of a cluster and its services."""
_ENDED = ("Complete", "Failed", "ValidationFailed")
_GOES_ON_AFTER = ("DeadlineExceeded",)
_RESTRICTED: Object = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "runAsNonRoot": True,
                       "seccompProfile": {"type": "RuntimeDefault"}}


def submit_rayjob(kube: Kube, job: str, flags: Sequence[str], *, name: str | None, template: str | None,
                  image: str | None,
                  workers: int, cpus: int, memory: str, gpus: int, wait: bool) -> int:
    """Returns the job's exit code: 0, 1, 2 or 3. Raises: ConfigError, ClusterError."""
    if job.endswith(".py"):
        raise ConfigError(f"{job}: pods take their code from an image: put the file's class into a package there, and "
                          "submit the job with --model.build PACKAGE.MODULE:CLASS; or submit to a Ray cluster, with "
                          "--address")
    command = command_of(job)
    module, flags = command.module, [*command.arguments, *flags]
    name = name or f"{_for_a_name(job)}-{time.strftime('%m%d-%H%M%S')}-{uuid.uuid4().hex[:4]}"
    made = (read_template(template, image) if template else
            minimal(image or _needs_image(), workers=workers, cpus=cpus, memory=memory, gpus=gpus))
    made = with_command(made, name, module, flags)
    kube.create("rayjobs", made)
    print(f"created RayJob {name} in namespace {kube.namespace}: {shlex.join(['python', '-m', module, *flags])}",
          flush=True)
    if not wait:
        print(_how_to(kube, name))
        return 0
    try:
        return Following(kube, name).to_its_end()
    except KeyboardInterrupt:
        print(f"\nnot followed any more; the job goes on\n{_how_to(kube, name)}", file=sys.stderr)
        return FOLLOWING_ENDED


def _for_a_name(job: str) -> str:
    """What a RayJob may be called for a job, with room for a time and more."""
    return re.sub("[^a-z0-9]+", "-", job.lower())[: _LONGEST_NAME - len("-0101-000000-abcd")].strip("-")


# ── the manifest ──
def read_template(path: str, image: str | None) -> Object:
    """The one RayJob of a YAML file (`-`: standard input), with another image for its Ray containers if one is given.

    Raises: ConfigError if it cannot be read, or has none or several.
    """
    try:
        text = sys.stdin.read(MOST_YAML_BYTES + 1) if path == "-" else read_bounded(Path(path), MOST_YAML_BYTES)
        objects = [cast(Object, each) for each in parse_yaml_documents(text) if isinstance(each, dict)]
    except (OSError, DocumentError) as error:
        raise ConfigError(f"--template {path} cannot be read ({error}): give the YAML of a RayJob") from error
    found = [each for each in objects if each.get("kind") == "RayJob"]
    if len(found) != 1:
        raise ConfigError(f"--template {path} has {len(found)} RayJobs: give one that has exactly one")
    made = found[0]
    spec: Object = (made.get("spec") or {}).get("rayClusterSpec") or {}
    for group in [spec.get("headGroupSpec"), *spec.get("workerGroupSpecs", [])] if image else []:
        if group:
            group["template"]["spec"]["containers"][0]["image"] = image
    return made


def minimal(image: str, *, workers: int, cpus: int, memory: str, gpus: int) -> Object:
    """A head that does no work, `workers` workers, token authentication; admitted under Pod Security `restricted`.

    Its pods have the labels by which the network policies of k8s/ let them reach each other. It states what the
    operator would add, as k8s/base/raycluster.yaml does.
    """
    return {
        "apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "job"},
        "spec": {
            "entrypoint": "", "submissionMode": "K8sJobMode", "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": 0,
            "backoffLimit": 0,
            "submitterPodTemplate": _pod("submitter", _container("ray-job-submitter", image, "500m", "1Gi", 0),
                                         restartPolicy="Never"),
            "rayClusterSpec": {
                "rayVersion": importlib.metadata.version("ray"), "authOptions": {"mode": "token"},
                "headGroupSpec": {"rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},
                                  "template": _pod("head", _container("ray-head", image, "1", "4Gi", 0))},
                "workerGroupSpecs": [{
                    "groupName": "workers", "replicas": workers, "minReplicas": workers, "maxReplicas": workers,
                    "numOfHosts": 1, "priority": 0, "scaleStrategy": {},
                    "rayStartParams": {"metrics-export-port": "8080"},
                    "template": _pod("worker", _container("ray-worker", image, str(cpus), memory, gpus))}],
            },
        },
    }


def _pod(component: str, container: Object, **more: object) -> Object:
    labels = {"app.kubernetes.io/part-of": "trainyard", "app.kubernetes.io/component": component}
    return {"metadata": {"labels": labels}, "spec": {"containers": [container], **more}}


def _container(name: str, image: str, cpu: str, memory: str, gpus: int) -> Object:
    wanted = {"cpu": cpu, "memory": memory, **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    return {"name": name, "image": image, "resources": {"requests": wanted, "limits": dict(wanted)},
            "env": [{"name": key, "value": value} for key, value in RAY_SETTINGS.items()],
            "securityContext": deepcopy(_RESTRICTED)}


def with_command(template: Object, name: str, module: str, flags: Sequence[str]) -> Object:
    """The template with a name, the command, and a mark that stays the same when KubeRay tries it again.

    Raises: ConfigError for a name that KubeRay does not take, or a flag that would not arrive as it is.
    """
    if len(name) > _LONGEST_NAME or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        raise ConfigError(f"--name {name}: use at most {_LONGEST_NAME} small letters, digits and '-', beginning with a "
                          "letter")
    made = deepcopy(template)
    spec: Object = made.setdefault("spec", {})
    twice = spec.get("submissionMode", "K8sJobMode") != "HTTPMode"
    quote = _twice if twice else shlex.quote
    spec["entrypoint"] = " ".join(["python", "-m", module, *(quote(flag) for flag in flags)])
    spec["metadata"] = {**(spec.get("metadata") or {}), submission.KEY: uuid.uuid4().hex}
    metadata: Object = made.setdefault("metadata", {})
    metadata["name"] = name
    for of_another in ("namespace", "generateName", "resourceVersion", "uid"):
        metadata.pop(of_another, None)
    made.pop("status", None)
    return made


def _twice(flag: str) -> str:
    """For two shells: the submitter's, and the job's. Between them `ray job submit` makes one line of the words: it
    puts those with spaces into double quotes,
    and a backslash before each double quote of a word's own (subprocess.list2cmdline)."""
    if shlex.quote(flag) == flag:
        return flag
    spaced = not flag or bool(re.search(r"[ \t]", flag))
    if re.search(r"[\n\r\v\f]", flag) or '\\"' in flag or (spaced and re.search(r"[$`\\]", flag)):
        raise ConfigError(f"{flag!r} does not come through the two shells of a RayJob: put it into a file for --config")
    return shlex.quote(flag if spaced else re.sub(r"""([^\w@%+=:,./"-])""", r"\\\1", flag))


def _needs_image() -> str:
    raise ConfigError("a RayJob needs an image or a template: pass --image with this repository and its packages in "
                      "it, or --template FILE with the YAML of a RayJob")


# ── following ──
class Following:
    """Says what becomes of a RayJob: its states, why it waits, the log of its submitter, and how it ended."""

    def __init__(self, kube: Kube, name: str, *, poll_s: float = _POLL_S,
                 explain_after_s: float = _EXPLAIN_AFTER_S) -> None:
        self._kube, self._name, self._poll_s, self._explain_after_s = kube, name, poll_s, explain_after_s
        self._said: set[str] = set()
        self._state, self._since = "", time.monotonic()
        self._reading: dict[str, Future[None]] = {}

    def to_its_end(self) -> int:
        """The exit code. Raises: ClusterError if the API server is lost for a minute,
        StoppedError if the RayJob is deleted."""
        while True:
            found = self._look()
            if found is None:
                raise StoppedError(f"RayJob {self._name} was deleted: submit it again; it goes on from its last "
                                   "checkpoint")
            status: Object = found.get("status") or {}
            self._show(state_of({"kind": "RayJob", **found}))
            self._read_log()
            if status.get("jobDeploymentStatus") in _ENDED:
                wait(self._reading.values(), timeout=10)
                return exit_code(status)
            if "RUNNING" not in self._state and time.monotonic() - self._since > self._explain_after_s:
                self._explain()
            time.sleep(self._poll_s)

    def _look(self) -> Object | None:
        clock = LoopClock()
        deadline = clock.now + LOST_AFTER_S
        while True:
            try:
                return self._kube.find("rayjobs", self._name)
            except ClusterError:
                if clock.look() > deadline:
                    raise
                time.sleep(self._poll_s)

    def _show(self, state: str) -> None:
        if state != self._state:
            print(f"RayJob {self._name}: {state}", flush=True)
            self._state, self._since = state, time.monotonic()

    def _explain(self) -> None:
        for problem in self._attempt(lambda: read_kube_status(self._kube, self._name).problems):
            if problem not in self._said:
                self._said.add(problem)
                print(f"waiting: {problem}", flush=True)

    def _read_log(self) -> None:
        """Of each submitter's pod that has begun, once."""
        for pod in self._attempt(lambda: self._kube.all("pods", f"job-name={self._name}")):
            name = pod["metadata"]["name"]
            if (name not in self._reading
                and (pod.get("status") or {}).get("phase") in ("Running", "Succeeded", "Failed")):
                self._reading[name] = in_background("trainyard-log", partial(self._print_log, name))
                self._reading[name].add_done_callback(logged(f"the log of pod {name}"))

    def _print_log(self, pod: str) -> None:
        """To its end. A connection that is lost is made again, for a minute;
        the lines of its last second may come twice."""
        since_s, lost_at, heard_at, clock = None, None, time.monotonic(), LoopClock()
        while True:
            try:
                for line in self._kube.log(pod, since_s=since_s):
                    print(line, flush=True)
                    lost_at, heard_at = None, time.monotonic()
                return
            except ClusterError as error:
                now = clock.look()
                lost_at = now if lost_at is None else lost_at
                if now - lost_at > LOST_AFTER_S:
                    print(f"the log of pod {pod} is not shown any more ({error})", file=sys.stderr, flush=True)
                    return
                time.sleep(self._poll_s)
                since_s = math.ceil(time.monotonic() - heard_at) + 1

    def _attempt(self, call: Callable[[], Iterable[T]]) -> list[T]:
        try:
            return list(call())
        except ClusterError as error:
            if str(error) not in self._said:
                self._said.add(str(error))
                print(f"not looked at: {error}", file=sys.stderr, flush=True)
            return []


def exit_code(status: Object) -> int:
    """Of a RayJob that has ended. KubeRay does not keep the job's code; Ray's message, which it does keep, has it."""
    if status.get("jobStatus") == "SUCCEEDED":
        return 0
    said = status.get("message") or ""
    print(f"RayJob ended: {status.get('reason') or status.get('jobStatus') or status['jobDeploymentStatus']}"
          f"{': ' + said.strip().splitlines()[0] if said.strip() else ''}", file=sys.stderr, flush=True)
    if status.get("jobDeploymentStatus") == "ValidationFailed":
        return ConfigError.exit_code
    if status.get("jobStatus") == "STOPPED" or status.get("reason") in _GOES_ON_AFTER:
        return StoppedError.exit_code
    found = re.search(r"failed with exit code (-?\d+)", said)
    return as_shell(int(found[1])) if found else 1


def _how_to(kube: Kube, name: str) -> str:
    there = f"--namespace {kube.namespace}"
    return (f"  look at it:  python -m cluster status --kubernetes {name} {there}\n"
            f"  follow it:   kubectl logs -f -l job-name={name} {there}\n"
            f"  stop it:     kubectl delete rayjob {name} {there}    (submitted again, it goes on from its last "
            "checkpoint)")
