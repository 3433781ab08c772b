"""An artifact is what its manifest says, to the byte, or it is refused with the name of what is wrong."""

import hashlib
import io
import json
import os
import pickle
import subprocess
import zipfile
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest

from cluster.core.errors import ArtifactError, UserError
from cluster.core.storage import Store
from jobs.common.artifact import allowed_formats
from jobs.common.artifact.artifact import WEIGHTS, Probe, open_artifact, weights_file, write_artifact
from jobs.common.artifact.manifest import Description
from jobs.common.artifact.tensor_spec import TensorSpec, parse_probe, to_json
from jobs.common.provenance import code_version, library_versions, without_secrets
from tests import kept

INPUT = TensorSpec(name="image", datatype="UINT8", shape=(-1, 2, 2, 1))
OUTPUT = TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 2))


def describe(**changes):
    fields = {
        "job": "mlp", "task": "image-classification", "inputs": (INPUT,), "outputs": (OUTPUT,),
        "labels": ("cat", "dog"),
        "preprocessing": {"mean": [127.5], "std": [64.0]}, "about": "Tells cats from dogs.",
        "limits": ("Not for birds.",),
        "metrics": {"test": {"accuracy": 0.975, "accuracy_low": 0.96, "accuracy_high": 0.98, "log_loss": 0.1}},
        "config": {"run": {"seed": 0}}, "data": {"fingerprint": "abc", "rows": {"train": 10}},
        "code": "git:1234", "libraries": {"python": "3.11.7"},
    }
    return Description(**fields | changes)


def a_probe():
    images = np.arange(8, dtype=np.uint8).reshape(2, 2, 2, 1)
    return Probe(inputs={"image": images},
                 outputs={"probabilities": np.array([[0.1, 0.9], [1 / 3, 2 / 3]], np.float32)})


def the_weights():
    rng = np.random.default_rng(0)
    return {"b.weight": rng.normal(size=(3, 4)).astype(np.float32), "a.bias": np.arange(3, dtype=np.float64)}


@pytest.fixture
def artifact(tmp_path):
    files = {WEIGHTS: weights_file(the_weights()), "tokenizer/vocab.txt": b"a\nb\n"}
    store = Store.open(str(tmp_path))
    return write_artifact(store, "artifact", description=describe(), probe=a_probe(), files=files)


def test_what_was_written_is_read_back(artifact):
    opened = open_artifact(artifact.uri, artifact.digest)
    assert opened.manifest == artifact.manifest
    for name, values in the_weights().items():
        np.testing.assert_array_equal(opened.weights()[name], values, strict=True)
    np.testing.assert_array_equal(opened.probe().inputs["image"], a_probe().inputs["image"], strict=True)
    np.testing.assert_array_equal(opened.probe().outputs["probabilities"], a_probe().outputs["probabilities"],
                                  strict=True)
    assert opened.read("tokenizer/vocab.txt") == b"a\nb\n"


def test_the_manifest_names_size_and_hash_of_every_file_beside_it(artifact):
    folder = artifact.store.local_path()
    manifest = json.loads((folder / "manifest.json").read_text())
    found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {"manifest.json"}
    assert {entry["path"] for entry in manifest["files"]} == found
    assert {"model.safetensors", "probe.json", "model_card.md", "tokenizer/vocab.txt"} == found
    for entry in manifest["files"]:
        data = (folder / entry["path"]).read_bytes()
        assert (entry["size"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert artifact.digest == hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert manifest["schema_version"] == 1
    assert manifest["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 2, 2, 1]}]


def test_the_same_model_written_twice_has_the_same_digest(tmp_path):
    stores = [Store.open(str(tmp_path / name)) for name in "ab"]
    files = {WEIGHTS: weights_file(the_weights())}
    first, second = (write_artifact(s, "x", description=describe(), probe=a_probe(), files=files) for s in stores)
    assert first.digest == second.digest


def test_the_probe_is_a_request_and_response_of_the_open_inference_protocol(artifact):
    body = json.loads(artifact.read("probe.json"))
    [tensor] = body["request"]["inputs"]
    assert (tensor["name"], tensor["datatype"], tensor["shape"]) == ("image", "UINT8", [2, 2, 2, 1])
    assert tensor["data"] == list(range(8))


def flip_a_bit(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def change_the_manifest_too(folder):
    flip_a_bit(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for entry in manifest["files"]:
        entry["sha256"] = hashlib.sha256((folder / entry["path"]).read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, "model.safetensors differs from its sha256"),
        (truncate, r"model.safetensors differs: \d+ bytes, not \d+"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: (f / "tokenizer" / "more.txt").write_text("x"), "tokenizer/more.txt is extra"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json is damaged"),
        (lambda f: (f / "manifest.json").write_text('{"schema_version": 99}'), "schema version 99"),
        (lambda f: (f / "manifest.json").unlink(), "has no manifest.json"),
        (lambda f: (f / "extra.pkl").write_bytes(b""), "extra.pkl is not in a safe format"),
        (change_the_manifest_too, "as was registered"),
    ],
)
def test_damage_is_refused_and_named(artifact, damage, message):
    damage(artifact.store.local_path())
    with pytest.raises(ArtifactError, match=message):
        open_artifact(artifact.uri, artifact.digest).weights()


def test_weights_that_change_after_verification_are_refused(artifact):
    opened = open_artifact(artifact.uri)
    flip_a_bit(artifact.store.local_path())
    with pytest.raises(ArtifactError, match="differs"):
        opened.weights()


@pytest.mark.parametrize("name", ["w.pkl", "w.pt", "w.bin", "w.ckpt", "w.npy", "W.PTH", "pickle", "code.py",
                                  "sub/x.joblib"])
def test_a_format_that_may_hold_a_pickle_is_refused_and_nothing_is_lost(artifact, name):
    with pytest.raises(ArtifactError, match="not in a safe format"):
        write_artifact(artifact.store, "", description=describe(), probe=a_probe(), files={name: b"{}"})
    open_artifact(artifact.uri, artifact.digest)


@pytest.mark.parametrize("name", ["w.json", "w.txt", "w.safetensors", "w.keras", "w.model"])
def test_a_pickle_under_another_name_is_refused(tmp_path, name):
    source = tmp_path / "source"
    source.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ArtifactError, match="cannot be put into an artifact"):
        write_artifact(Store.open(str(tmp_path)), "x", description=describe(), probe=a_probe(), files={name: source})
    assert not (tmp_path / "x").exists()


def test_a_pickle_inside_a_keras_archive_is_refused(tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("data.pkl", pickle.dumps([1]))
    check_refused_written_and_opened(tmp_path, "model.keras", packed.getvalue(), "holds data.pkl")


def check_refused_written_and_opened(folder, name, data, why):
    """What one program may not write another may have written."""
    store, given = Store.open(str(folder)), {"description": describe(), "probe": a_probe()}
    with pytest.raises(ArtifactError, match=f"it {why}"):
        write_artifact(store, "x", **given, files={name: data})
    (folder / "elsewhere").write_bytes(data)
    write_artifact(store, "x", **given, files={name: folder / "elsewhere"})
    with pytest.raises(ArtifactError, match=f"{name} {why}"):
        open_artifact(folder / "x")


# ── what is written by hand, with a manifest that fits it ──
def forge(folder, path, data):
    """Puts a file into an artifact, and its true size and hash into the manifest."""
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["files"] = [each for each in manifest["files"] if each["path"] != path] + [entry]
    (folder / "manifest.json").write_text(json.dumps(manifest))


DEEP = b"[" * 100_000 + b"]" * 100_000


def tensors(header, data=bytes(8)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry_of(**changes):
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


@pytest.mark.parametrize(("data", "why"), [
    ((2**62).to_bytes(8, "little") + b"{}", "header of .* does not fit"),
    (tensors(b'{"a":' + DEEP + b"}"), "is not safetensors"),
    (tensors(entry_of(dtype="O8")), "of the type 'O8'"),
    (tensors(entry_of(shape=[2**40])), "is not what its 8 bytes hold"),
    (tensors(entry_of(shape=[-1, -2])), "is not what its 8 bytes hold"),
    (tensors(entry_of(data_offsets=[0, 8]) | {"b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, bytes(12)),
     "does not begin where"),
    (tensors(entry_of(), bytes(80)), "its tensors have 8 bytes, the file 80"),
    (tensors(entry_of(), b""), "its tensors have 8 bytes, the file 0"),
    (tensors({"a": 5}), "is not safetensors"),
])
def test_safetensors_that_do_not_add_up_are_refused(artifact, data, why):
    forge(artifact.store.local_path(), WEIGHTS, data)
    with pytest.raises(ArtifactError, match=f"{WEIGHTS} .*{why}"):
        open_artifact(artifact.uri).weights()


INDEX = "model.safetensors.index.json"


def model_file(name, **fields):
    return f"model/{name}", json.dumps({"model_type": "bert", **fields}).encode()


@pytest.mark.parametrize(("path", "data", "why"), [
    ("probe.json", DEEP, "probe.json is not JSON, or is damaged"),
    ("reference.json", DEEP, "reference.json is not JSON"),
    ("model/config.json", DEEP, "model/config.json is not JSON"),
    ("model/tokenizer.json", DEEP, "model/tokenizer.json is not JSON"),
    (*model_file("config.json", auto_map={"AutoConfig": "evil.Config"}), "has auto_map, which names Python code"),
    (*model_file("tokenizer_config.json", auto_map=["evil.T", None]), "has auto_map"),
    (*model_file("preprocessor_config.json", auto_map={"AutoProcessor": "x--evil.P"}), "has auto_map"),
    (*model_file("config.json", text_config={"auto_map": {"AutoModel": "evil.M"}}), "has auto_map"),
    (*model_file("config.json", detector_config={"trust_remote_code": True}), "has trust_remote_code"),
    (*model_file("config.json", _attn_implementation="somebody/evil-kernel"), "would fetch compiled code"),
    (*model_file("config.json", sub={"attn_implementation": {"": "somebody/evil:x"}}), "would fetch compiled code"),
    (*model_file("config.json", quantization_config={"quant_method": "fp8"}), "has quantization_config"),
    (*model_file(INDEX, weight_map={"a": "../../../outside.safetensors"}), "is not a .safetensors file beside it"),
    (*model_file(INDEX, weight_map={"a": "absent.safetensors"}), "names absent.safetensors, which is not there"),
    (*model_file(INDEX, weight_map=5), "has no weight_map"),
])
def test_json_that_asks_for_code_or_leads_elsewhere_or_is_too_deep_is_refused(artifact, path, data, why):
    forge(artifact.store.local_path(), path, data)
    with pytest.raises(ArtifactError, match=why) as caught:
        open_artifact(artifact.uri)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "value"),
                         [("label2id", {"auto_map": 0, "quantization_config": 1}), ("auto_map", None),
                          ("attn_implementation", "sdpa")])
def test_a_config_that_asks_for_nothing_is_taken(artifact, name, value):
    forge(artifact.store.local_path(), *model_file("config.json", **{name: value}))
    forge(artifact.store.local_path(), "model/vocab.json", b'{"auto_map": 1}')
    open_artifact(artifact.uri)


def asking(inputs):
    return "probe.json", json.dumps({"request": {"inputs": inputs}, "response": {"outputs": []}}).encode()


@pytest.mark.parametrize(("path", "data"), [
    ("probe.json", b"{}"), asking(5), asking([{"name": "a", "datatype": "FLOAT", "shape": [1], "data": [1]}]),
    asking([{"name": "a", "datatype": "UINT8", "shape": [2], "data": [{}, {}]}]),
    asking([{"name": "a", "datatype": "UINT8", "shape": [2], "data": [1]}]),
    asking([{"name": "a", "datatype": "INT64", "shape": [1], "data": [2**70]}]),
    ("reference.json", b'{"a": 5}'), ("reference.json", b'{"a": {"edges": [1.0], "counts": [1]}}'),
])
def test_a_probe_or_reference_of_wrong_types_is_refused_in_one_line(artifact, path, data):
    forge(artifact.store.local_path(), path, data)
    opened = open_artifact(artifact.uri)
    with pytest.raises(ArtifactError, match=f"{path} is damaged") as caught:
        opened.probe() if path == "probe.json" else opened.reference()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [
    {"job": 5}, {"labels": {}}, {"labels": [1]}, {"inputs": 5},
    {"inputs": [{"name": "x", "datatype": "FLOAT", "shape": [1]}]},
    {"metrics": []}, {"config": 5}, {"files": {}}, {"files": [{"path": 1, "size": 1, "sha256": ""}]}, {"variant": 5},
    {"unheard_of": 1}, {"files": [{"path": "../w.json", "size": 1, "sha256": ""}]},
    {"files": 2 * [{"path": "a.json", "size": 1, "sha256": ""}]}, {"schema_version": "1"}, {"schema_version": True},
])
def test_a_manifest_of_wrong_types_is_damaged_in_one_line(artifact, change):
    path = artifact.store.local_path("manifest.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ArtifactError, match=r"manifest.json is damaged \(") as caught:
        open_artifact(artifact.uri)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["5", "[]", "null", '"x"', DEEP.decode()])
def test_a_manifest_that_is_no_object_is_damaged(artifact, text):
    artifact.store.local_path("manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
        open_artifact(artifact.uri)


def link_a_member(folder):
    (folder / WEIGHTS).rename(folder.parent / "outside")
    (folder / WEIGHTS).symlink_to(folder.parent / "outside")


def link_a_folder(folder):
    (folder / "tokenizer").rename(folder.parent / "outside")
    (folder / "tokenizer").symlink_to(folder.parent / "outside")


def pipe_as_manifest(folder):
    (folder / "manifest.json").unlink()
    os.mkfifo(folder / "manifest.json")


@pytest.mark.parametrize(("attack", "message"), [
    (link_a_member, "model.safetensors is a link, a pipe or a device, not a file"),
    (link_a_folder, "tokenizer is a link"),
    (lambda f: (f / "loop").symlink_to(f), "loop is a link"),
    (lambda f: os.mkfifo(f / "more.json"), "more.json is a link, a pipe"),
    (pipe_as_manifest, "manifest.json is a link, a pipe"),
    (lambda f: (f / "evil.json.partial").write_text("{}"), "evil.json.partial is extra"),
])
def test_links_pipes_and_files_that_a_listing_leaves_out_are_refused(artifact, attack, message):
    attack(artifact.store.local_path())
    with pytest.raises(ArtifactError, match=message):
        open_artifact(artifact.uri)


def an_onnx(**tensor):
    """A product with weights that are a node's attribute inside a branch of another node."""
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
    for field, value in tensor.items():
        getattr(weights, field).extend(value) if field == "external_data" else setattr(weights, field, value)
    inner = helper.make_graph([helper.make_node("Constant", [], ["c"], value=weights)], "branch", [],
                              [helper.make_tensor_value_info("c", TensorProto.FLOAT, [2, 2])])
    nodes = [helper.make_node("If", ["which"], ["v"], then_branch=inner, else_branch=inner),
             helper.make_node("MatMul", ["x", "v"], ["y"])]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 2]) for name in "xy")
    which = helper.make_tensor_value_info("which", TensorProto.BOOL, [])
    return helper.make_model(helper.make_graph(nodes, "graph", [x, which], [y]))


def test_each_file_is_read_once_so_what_is_looked_at_is_what_was_hashed(artifact, monkeypatch):
    forge(artifact.store.local_path(), "model.onnx", an_onnx().SerializeToString())
    opened, rewound, reading = Counter(), [], Store.reading

    @contextmanager
    def counted(self, path):
        opened[path] += 1
        with reading(self, path) as stream:
            yield stream
            rewound.extend([path] if stream.tell() < stream.size() else [])

    monkeypatch.setattr(Store, "reading", counted)
    made = open_artifact(artifact.uri)
    assert opened == dict.fromkeys([*made.manifest.paths, "manifest.json"], 1)
    assert not rewound


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused_before_it_is(tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", bytes(64 << 20))
    check_refused_written_and_opened(tmp_path, "model.keras", packed.getvalue(), "holds config.json compressed")
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as archive:
        archive.writestr("config.json", bytes(1000))
        again = zipfile.ZipInfo("again.json")
        for name in ("header_offset", "file_size", "compress_size", "CRC"):
            setattr(again, name, getattr(archive.infolist()[0], name))
        archive.filelist.append(again)
    check_refused_written_and_opened(tmp_path, "model.keras", twice.getvalue(), "holds more than its own size")


def test_safetensors_whose_header_length_looks_like_a_pickle_is_taken():
    assert allowed_formats.head_refusal("w.safetensors", (0x0280).to_bytes(8, "little") + b'{"a":') is None


@pytest.mark.parametrize("name", ["../w.json", "/etc/w.json", "manifest.json", "a/../../w.json"])
def test_a_file_outside_the_folder_is_refused(tmp_path, name):
    with pytest.raises(ArtifactError, match="give it another name"):
        write_artifact(Store.open(str(tmp_path)), "x", description=describe(), probe=a_probe(), files={name: b"{}"})


def test_a_rewritten_artifact_keeps_nothing_of_the_old_one(artifact):
    write_artifact(artifact.store, "", description=describe(), probe=a_probe(),
                   files={WEIGHTS: weights_file(the_weights())})
    assert "tokenizer/vocab.txt" not in open_artifact(artifact.uri).manifest.paths


def test_a_copy_is_verified_and_a_damaged_source_is_found_out(artifact, tmp_path):
    copy = artifact.copy_to(tmp_path / "copy")
    assert copy.digest == artifact.digest
    flip_a_bit(artifact.store.local_path())
    with pytest.raises(ArtifactError, match="differs"):
        artifact.copy_to(tmp_path / "second")


def test_a_probe_that_does_not_fit_the_tensors_is_refused(tmp_path):
    wrong = Probe(inputs={"image": a_probe().inputs["image"].astype(np.float32)}, outputs=a_probe().outputs)
    with pytest.raises(ValueError, match="'image' is UINT8"):
        write_artifact(Store.open(str(tmp_path)), "x", description=describe(), probe=wrong, files={})
    with pytest.raises(ValueError, match="needs tensors"):
        to_json([INPUT], {"picture": a_probe().inputs["image"]})
    with pytest.raises(ValueError, match="none of BOOL"):
        TensorSpec(name="x", datatype="FLOAT", shape=(-1,))


def test_strings_travel_as_bytes_tensors():
    spec = TensorSpec(name="text", datatype="BYTES", shape=(-1, 1))
    texts = np.array([["Grüße"], ["日本"]], dtype=object)
    carried = to_json([spec], {"text": texts})
    inputs, outputs = parse_probe(json.dumps({"request": {"inputs": carried},
                                              "response": {"outputs": carried}}).encode())
    assert inputs["text"].tolist() == outputs["text"].tolist() == texts.tolist()


def test_no_artifact_there_is_a_users_error(tmp_path):
    with pytest.raises(UserError, match=r"no artifact at .*nowhere: it has no manifest.json"):
        open_artifact(tmp_path / "nowhere")


def test_the_card_tells_figures_with_interval_tensors_limits_and_escapes_names(tmp_path):
    description = describe(labels=("cat", "<b>|dog\n"), data={"uri": "s3://key:secret@bucket/x"})
    card = write_artifact(
        Store.open(str(tmp_path)), "x", description=description, probe=a_probe(), files={}
    ).read("model_card.md").decode()
    assert "| accuracy | 0.9750 (95% interval 0.9600 to 0.9800) |" in card
    assert "input `image`: UINT8, any × 2 × 2 × 1" in card
    assert "- Not for birds." in card and "open_artifact" in card
    assert r"\<b\>\|dog" in card
    assert "secret" not in card


def test_credentials_in_addresses_are_blotted_out():
    config = {"run": {"tracking_uri": "http://me:hush@host/"},
              "uris": ("s3://b?access_key=A&secret_key=hush&region=x", 3)}
    assert without_secrets(config) == {
        "run": {"tracking_uri": "http://***@host/"}, "uris": ["s3://b?access_key=***&secret_key=***&region=x", 3],
    }


def test_the_code_version_is_the_commit_or_a_hash_of_the_source(tmp_path):
    (tmp_path / "jobs").mkdir()
    source = tmp_path / "jobs" / "a.py"
    source.write_text("x = 1\n")
    before = code_version(tmp_path)
    assert before.startswith("sha256:") and code_version(tmp_path) == before
    source.write_text("x = 2\n")
    assert code_version(tmp_path) != before

    def git(*arguments):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@t", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    git("add", "jobs")
    git("commit", "-m", "x")
    assert code_version(tmp_path) == f"git:{git('rev-parse', 'HEAD')}"
    source.write_text("x = 3\n")
    assert code_version(tmp_path).endswith("+changes")


def test_library_versions_are_those_installed():
    versions = library_versions()
    assert versions["numpy"] == np.__version__ and "python" in versions


def test_the_paths_that_earlier_model_cards_name_still_load() -> None:
    names = {}
    exec("from jobs.common.artifact import open_artifact\nfrom serving.predictor import load_predictor", names)
    artifact = names["open_artifact"](str(kept.artifact("mlp")))
    predictor = names["load_predictor"](artifact)
    probe = artifact.probe()
    answers = predictor.encode(predictor.predict(predictor.decode(probe.inputs)))
    np.testing.assert_allclose(answers["probabilities"], probe.outputs["probabilities"], rtol=1e-5)
    with pytest.raises(ImportError, match="no_such"):
        exec("from jobs.common.artifact import no_such", {})
