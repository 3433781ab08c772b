"""`python -m cluster status|submit --kubernetes`,
from the command line to an API server that replays (tests/kube_api.py)."""

import json
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster import __main__ as command_line
from cluster.core.errors import ClusterError, ConfigError, StoppedError
from cluster.core.ray_settings import RAY_SETTINGS
from cluster.kubernetes import rayjob as rayjobs
from cluster.kubernetes.client import Kube, NotAllowedError
from cluster.kubernetes.rayjob import Following, exit_code, minimal, read_template, with_command
from tests.kube_api import NAMESPACE, KubeApi, kube_api, kubeconfig
from tests.kube_objects import event, pod, raycluster, rayjob, ready, submitter, unscheduled
from tests.manifest_rules import as_the_operator_writes
from tests.runs import ROOT

CRDS = ROOT.parent / "shared" / "schemas" / "kuberay-1.7.0"
REPORT = """======== Autoscaler status: 2026-11-26 10:00:00 ========
Total Usage:
 0.0/2.0 CPU

Total Constraints:
 (no request_resources() constraints)
Total Demands:
 {'CPU': 8.0} * 4 (PACK): 1+ pending placement groups
"""


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeApi]:
    with kube_api() as api:
        monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path, api)))
        monkeypatch.setenv("COLUMNS", "160")
        yield api


def cli(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = command_line.main(list(arguments))
    heard = capsys.readouterr()
    return code, heard.out, heard.err


# ── status ──
def test_status_shows_a_job_with_its_cluster_its_pods_and_what_ray_says(api: KubeApi,
                                                                        capsys: pytest.CaptureFixture[str]) -> None:
    api.put(rayjob(jobDeploymentStatus="Running", jobStatus="RUNNING", rayClusterName="train-abcde"),
            raycluster(spec={"authOptions": {"mode": "token"}}, head={"serviceName": "train-head-svc"},
                       readyWorkerReplicas=2,
                       desiredWorkerReplicas=2),
            {"kind": "Secret", "metadata": {"name": "train-abcde"}, "data": {"auth_token": "c2VjcmV0"}},
            ready("h", kind="head"), ready("w-1"), ready("w-2"))
    api.through_services = {
        "train-head-svc:8265/api/jobs/": [{"submission_id": "train-1", "status": "RUNNING",
                                           "entrypoint": "python -m jobs.mlp"}],
        "train-head-svc:8265/api/cluster_status": {"data": {"clusterStatus": "Demands:\n (no resource demands)\n"}}}
    code, out, err = cli(capsys, "status", "--kubernetes", "train")
    assert (code, err) == (0, "")
    for words in ("namespace team", "Running, RUNNING", "train-abcde", "2 of 2", "3 Running", "no problems",
                  "Ray in train-abcde: job train-1 RUNNING: python -m jobs.mlp"):
        assert words in out, out
    asked = [headers for _, path, headers in api.asked if "/proxy/" in path]
    assert {headers.get("X-Ray-Authorization") for headers in asked} == {"Bearer secret"}
    assert "secret" not in out


def test_status_explains_and_ends_with_1(api: KubeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.put(rayjob(jobDeploymentStatus="Initializing"), raycluster(head={"serviceName": "train-head-svc"}),
            ready("h", kind="head"),
            pod("w-1", conditions=unscheduled("0/1 nodes are available: 1 Insufficient cpu.")),
            event("of-another-job", "FailedToCreateHeadPod", "not mine"))
    api.through_services = {"train-head-svc:8265/api/jobs/": [],
                            "train-head-svc:8265/api/cluster_status": {"data": {"clusterStatus": REPORT}}}
    code, out, _ = cli(capsys, "status", "--kubernetes")
    assert code == 1
    assert "problem: pod w-1: no node fits: 0/1 nodes are available: 1 Insufficient cpu.: add nodes" in out
    assert "problem: Ray in train-abcde waits for {'CPU': 8.0} * 4 (PACK): 1 pending placement groups" in out
    assert "not mine" not in out


def test_a_cluster_that_is_nobodys_is_an_owner_of_its_own(api: KubeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.put(rayjob(jobDeploymentStatus="Running"), raycluster(), raycluster("alone", of=None, state="ready"))
    code, out, _ = cli(capsys, "status", "--kubernetes")
    assert code == 0
    assert out.count("RayCluster") == 1 and "alone" in out and "train-abcde" in out


def test_a_name_that_is_not_there_is_refused_with_those_that_are(api: KubeApi,
                                                                 capsys: pytest.CaptureFixture[str]) -> None:
    api.put(rayjob())
    code, out, err = cli(capsys, "status", "--kubernetes", "other")
    assert (code, out) == (2, "")
    assert err.strip() == ("there is no RayJob, RayService or RayCluster 'other' in namespace team: there is train; "
                           "pass --namespace for another one")


def test_what_may_not_be_read_is_said_and_the_rest_is_shown(api: KubeApi, capsys: pytest.CaptureFixture[str]) -> None:
    api.put(rayjob(jobDeploymentStatus="Running"))
    said = 'events is forbidden: User "me" cannot list resource "events" in API group ""'
    api.refused["events"] = 403, said
    code, out, _ = cli(capsys, "status", "--kubernetes")
    assert code == 0
    assert f"not looked at: not allowed to read /api/v1/namespaces/team/events in namespace team ({said})" in out


def test_a_server_that_allows_nothing_or_knows_nobody_or_is_not_there_is_one_message(
        api: KubeApi, capsys: pytest.CaptureFixture[str]) -> None:
    for plural in ("rayjobs", "rayclusters", "rayservices"):
        api.refused[plural] = 403, f'{plural} is forbidden: User "me" cannot list resource'
    assert cli(capsys, "status", "--kubernetes")[::2] == (2, (
        "not allowed to read /apis/ray.io/v1/namespaces/team/rayjobs in namespace team (rayjobs is forbidden: User "
        "\"me\" cannot list resource): ask for a Role that allows it\n"))
    api.refused.clear()
    api.token = "another"
    code, _, err = cli(capsys, "status", "--kubernetes")
    assert code == 2 and err.startswith("the Kubernetes API server does not know who asks (Unauthorized): renew the "
                                        "credentials")
    began = time.monotonic()
    code, _, err = cli(capsys, "status", "--kubernetes", "--context", "away")
    assert code == 2 and "the Kubernetes API server at http://127.0.0.1:1 does not answer (" in err
    assert "Connection refused" in err
    assert time.monotonic() - began < 30


def test_no_kubeconfig_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                      capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    code, _, err = cli(capsys, "status", "--kubernetes")
    assert code == 2 and err.startswith("no Kubernetes cluster is known here (") and "set KUBECONFIG" in err


def test_flags_of_the_other_kind_are_refused(api: KubeApi, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(capsys, "status", "--namespace", "x") == (2, "", "--namespace and --context are of --kubernetes: pass "
                                                                "that too\n")
    assert cli(capsys, "submit", "mlp", "--image", "x") == (2, "", "--image: of --kubernetes only: pass that too\n")
    assert cli(capsys, "submit", "mlp",
               "--kubernetes")[2].startswith("a RayJob needs an image or a template: pass --image")
    assert cli(capsys, "submit", "no", "--kubernetes", "--image",
               "x")[2].startswith("there is no job 'no': give one of cnn, mlp")
    assert cli(capsys, "submit", "mlp", "--kubernetes", "--address", "x")[0] == 2
    assert cli(capsys, "watch", "--", "x")[0] == 2
    assert api.created == []


# ── the manifest ──
def test_the_small_manifest_is_valid_and_holds_the_command() -> None:
    if not CRDS.is_dir():
        pytest.skip("needs ../shared/schemas/kuberay-1.7.0 beside the repository")
    made = with_command(minimal("x/y:1", workers=2, cpus=4, memory="8Gi", gpus=1), "train-1", "jobs.mlp",
                        ["--run.workers", "2"])
    schema = yaml.load((CRDS / "ray.io_rayjobs.yaml").read_text(), yaml.CSafeLoader)  # in C: it is large
    v1 = next(v for v in schema["spec"]["versions"] if v["name"] == "v1")["schema"]["openAPIV3Schema"]
    jsonschema.Draft202012Validator(closed(v1)).validate(made)
    assert list(as_the_operator_writes(made)) == []
    assert made["spec"]["entrypoint"] == "python -m jobs.mlp --run.workers 2"
    assert made["spec"]["shutdownAfterJobFinishes"] and made["spec"]["ttlSecondsAfterFinished"] == 0
    containers = [group["template"]["spec"]["containers"][0] for group in
                  (made["spec"]["rayClusterSpec"]["headGroupSpec"],
                   *made["spec"]["rayClusterSpec"]["workerGroupSpecs"])]
    assert all(each["resources"]["requests"]["memory"] == each["resources"]["limits"]["memory"] for each in containers)
    assert [each["resources"]["limits"].get("nvidia.com/gpu") for each in containers] == [None, "1"]
    assert all(each["securityContext"]["runAsNonRoot"] for each in containers)
    assert all({pair["name"]: pair["value"] for pair in each["env"]} == RAY_SETTINGS for each in containers)


def closed(schema: Any) -> Any:
    """A CRD's schema in which an unknown field is an error; integer-or-string is either."""
    if not isinstance(schema, dict):
        return schema
    made = {key: {k: closed(v) for k, v in value.items()} if key == "properties" else closed(value)
            for key, value in schema.items()
            if not key.startswith("x-")}
    if schema.get("x-kubernetes-int-or-string"):
        return {}
    if ("properties" in schema and "additionalProperties" not in schema
        and not schema.get("x-kubernetes-preserve-unknown-fields")):
        made["additionalProperties"] = False
    made.pop("format", None)
    return made


def test_each_submission_has_a_mark_of_its_own_that_a_retry_keeps() -> None:
    first, second = (with_command(minimal("x", workers=1, cpus=1, memory="1Gi", gpus=0), "a", "jobs.mlp", [])
                     for _ in range(2))
    assert first["spec"]["metadata"]["trainyard_submission"] != second["spec"]["metadata"]["trainyard_submission"]


def test_a_template_keeps_all_but_name_command_and_image(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    given = minimal("old:1", workers=3, cpus=1, memory="1Gi", gpus=0) | {
        "metadata": {"name": "theirs", "namespace": "elsewhere", "labels": {"kueue.x-k8s.io/queue-name": "q"}}}
    given["spec"]["backoffLimit"] = 2
    file.write_text(yaml.safe_dump_all([{"kind": "ServiceAccount", "metadata": {"name": "s"}}, given]))
    made = with_command(read_template(str(file), "new:2"), "mine", "jobs.cnn", ["--a", "b"])
    assert made["metadata"] == {"name": "mine", "labels": {"kueue.x-k8s.io/queue-name": "q"}}
    assert (made["spec"]["backoffLimit"], made["spec"]["entrypoint"]) == (2, "python -m jobs.cnn --a b")
    groups = made["spec"]["rayClusterSpec"]
    of_pods = [group["template"]["spec"] for group in (groups["headGroupSpec"], *groups["workerGroupSpecs"])]
    assert {each["containers"][0]["image"] for each in of_pods} == {"new:2"}
    file.write_text("kind: Pod")
    with pytest.raises(ConfigError, match="has 0 RayJobs: give one that has exactly one"):
        read_template(str(file), None)


def test_flags_come_through_the_submitters_shell_and_the_jobs() -> None:
    """As KubeRay does it: a shell runs `ray job submit -- COMMAND`, which hands it, made one line,
    to the job's shell."""
    flags = ["plain", "s3://b/x?a=1&b=2", "two words", "a;b|c", "*", "it's", '{"a":1}', "#x", "~", "", 'a"b;c', "$HOME",
             r"a\b",
             "é (x)", "`id`"]
    made = with_command(minimal("x", workers=1, cpus=1, memory="1Gi", gpus=0), "a", "jobs.mlp", flags)
    command = made["spec"]["entrypoint"].removeprefix("python -m jobs.mlp")
    seen = _shell("bash", "import subprocess, sys; print(subprocess.list2cmdline(sys.argv[1:]))", command).strip()
    assert json.loads(_shell("sh", "import json, sys; print(json.dumps(sys.argv[1:]))", seen)) == flags


def _shell(shell: str, code: str, arguments: str) -> str:
    """What a program prints that a shell gives arguments to."""
    return subprocess.run([shell, "-c", f"python3 -c {shlex.quote(code)} {arguments}"], text=True, capture_output=True,
                          check=True).stdout


def test_what_cannot_come_through_is_refused() -> None:
    for flag in ('a "$b"', "two $words", "two\nlines", r'\"'):
        with pytest.raises(ConfigError,
                           match="does not come through the two shells of a RayJob: put it into a file for --config"):
            with_command({}, "a", "jobs.mlp", [flag])
    with pytest.raises(ConfigError, match="--name Up: use at most 47 small letters"):
        with_command({}, "Up", "jobs.mlp", [])


# ── submitted and followed ──
def changes(api: KubeApi, *steps: Callable[[], None]) -> threading.Thread:
    """Each one when what was before it has been looked at."""
    def looks() -> int:
        return sum(path.endswith("/rayjobs/train") for _, path, _ in list(api.asked))

    def carry_out() -> None:
        deadline = time.monotonic() + 60
        for step in steps:
            before = looks()
            while looks() < before + 2 and time.monotonic() < deadline:
                time.sleep(0.01)
            step()

    thread = threading.Thread(target=carry_out, daemon=True)
    thread.start()
    return thread


def now(api: KubeApi, **status: Any) -> Callable[[], None]:
    return lambda: api.objects["rayjobs", "train"].update(status=status)


@pytest.mark.parametrize(("ending", "code"), [
    ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, 0),
    ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed",
      "message": "Job entrypoint command failed with exit code 2, last available logs (truncated to 20,000 "
                 "chars):\nerror: no"}, 2),
])
def test_a_rayjob_is_made_and_followed_and_ends_with_the_jobs_code(
        api: KubeApi, ending: dict[str, Any], code: int, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(rayjobs, "Following", partial(Following, poll_s=0.05))
    api.logs["train-xyz12"] = "epoch 1/2 loss 0.5\nartifact: /x\n"
    thread = changes(api, now(api, jobDeploymentStatus="Initializing"), lambda: api.put(submitter()),
                     now(api, jobDeploymentStatus="Running", jobStatus="RUNNING"), now(api, **ending))
    got, out, _ = cli(capsys, "submit", "mlp", "--kubernetes", "--name", "train", "--image", "x:1", "--",
                      "--run.workers", "2")
    thread.join()
    assert got == code
    assert out.count("epoch 1/2 loss 0.5\nartifact: /x\n") == 1
    lines = [line for line in out.splitlines() if line.startswith("RayJob train: ")]
    assert [line.partition(": ")[2] for line in lines][:-1] == ["not looked at yet", "Initializing", "Running, RUNNING"]
    (made,) = api.created
    assert made["spec"]["entrypoint"] == "python -m jobs.mlp --run.workers 2"


def test_a_log_that_cannot_be_read_for_a_while_is_shown_afterwards(api: KubeApi,
                                                                   capsys: pytest.CaptureFixture[str]) -> None:
    kube = Kube.connect()
    api.put(rayjob(jobDeploymentStatus="Running"), submitter())

    def back() -> None:
        assert sum(path.endswith("/log") for _, path, _ in api.asked) > 2
        api.logs["train-xyz12"] = "epoch 1/2 loss 0.5\n"

    threading.Timer(0.6, back).start()
    threading.Timer(1.2, now(api, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")).start()
    assert Following(kube, "train", poll_s=0.05).to_its_end() == 0
    assert capsys.readouterr().out.count("epoch 1/2 loss 0.5\n") == 1


def test_events_of_an_object_of_the_same_name_that_is_gone_are_left_out(api: KubeApi,
                                                                        capsys: pytest.CaptureFixture[str]) -> None:
    old, new = (event("train", "InvalidRayJobSpec", said) for said in ("no entrypoint", "no image"))
    old["involvedObject"]["uid"], new["involvedObject"]["uid"] = "uid-of-before", "uid-train"
    api.put(rayjob(jobDeploymentStatus="ValidationFailed"), old, new)
    _, out, err = cli(capsys, "status", "--kubernetes", "train")
    assert "no image" in out + err and "no entrypoint" not in out + err


def test_what_keeps_a_rayjob_waiting_is_said_once(api: KubeApi, capsys: pytest.CaptureFixture[str]) -> None:
    kube = Kube.connect()
    api.put(rayjob(jobDeploymentStatus="Initializing"), raycluster(),
            pod("w-1", conditions=unscheduled("0/1 nodes are available: 1 Insufficient cpu.")))
    threading.Timer(0.5, now(api, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")).start()
    assert Following(kube, "train", poll_s=0.05, explain_after_s=0.1).to_its_end() == 0
    out = capsys.readouterr().out
    assert out.count("waiting: pod w-1: no node fits") == 1


def test_a_rayjob_that_is_deleted_meanwhile_ends_as_stopped(api: KubeApi) -> None:
    kube = Kube.connect()
    api.put(rayjob(jobDeploymentStatus="Running"))
    threading.Timer(0.2, lambda: api.forget("RayJob", "train")).start()
    with pytest.raises(StoppedError, match="RayJob train was deleted: submit it again"):
        Following(kube, "train", poll_s=0.05).to_its_end()


def test_a_name_that_is_taken_and_a_webhook_that_refuses_are_the_users_to_mend(
    api: KubeApi, capsys: pytest.CaptureFixture[str]
) -> None:
    api.put(rayjob())
    submit = ("submit", "mlp", "--kubernetes", "--name", "train", "--image", "x:1")
    code, _, err = cli(capsys, *submit)
    assert code == 2
    assert err == ('the Kubernetes API server refuses it (rayjobs.ray.io "train" already exists): mend that and try '
                   'again\n')
    api.refused["rayjobs"] = 403, 'admission webhook "policy" denied the request: no limits'
    assert "admission webhook" in cli(capsys, *submit)[2]
    api.refused["rayjobs"] = 403, 'rayjobs.ray.io is forbidden: User "me" cannot create resource'
    assert "ask for a Role that allows it" in cli(capsys, *submit)[2]


def test_without_waiting_it_says_how_to_go_on(api: KubeApi, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = cli(capsys, "submit", "mlp", "--kubernetes", "--name", "train", "--image", "x:1", "--no-wait")
    assert code == 0
    for words in (f"created RayJob train in namespace {NAMESPACE}",
                  "python -m cluster status --kubernetes train --namespace team",
                  "kubectl delete rayjob train"):
        assert words in out


@pytest.mark.parametrize(("status", "code"), [
    ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED",
      "message": "Job entrypoint command failed with exit code 3, last"},
     3),
    ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED",
      "message": "Job entrypoint command failed with exit code -9, "}, 137),
    ({"jobDeploymentStatus": "Failed", "jobStatus": "STOPPED"}, 3),
    ({"jobDeploymentStatus": "Failed", "reason": "DeadlineExceeded", "message": "passed"}, 3),
    ({"jobDeploymentStatus": "Failed", "reason": "SubmissionFailed", "message": "the head is gone"}, 1),
    ({"jobDeploymentStatus": "ValidationFailed", "message": "no entrypoint"}, 2),
])
def test_the_exit_code_of_a_rayjob(status: dict[str, Any], code: int) -> None:
    assert exit_code(status) == code


def test_lost_rights_and_a_lost_server_are_told_apart(api: KubeApi) -> None:
    kube = Kube.connect()
    assert kube.find("rayjobs", "none") is None
    assert kube.all("workloads") == []  # Kueue is not installed
    api.refused["pods"] = 403, 'pods is forbidden: User "me" cannot list resource "pods"'
    with pytest.raises(NotAllowedError):
        kube.all("pods")
    api.refused["pods"] = 503, "overloaded"
    with pytest.raises(ClusterError, match=r"says 503 \(overloaded\)"):
        kube.all("pods")
