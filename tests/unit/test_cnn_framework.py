"""TensorFlow and Keras themselves: how they are imported, beside which other frameworks, and where they are missing."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jobs.cnn.framework", reason="needs TensorFlow (pip install 'trainyard[tensorflow]')")

from cluster.core.network import free_port
from tests import runs


def test_importing_keras_leaves_out_what_it_does_not_need_and_gives_it_back() -> None:
    code = ("import os, sys\nfrom jobs.cnn.framework import keras, tf\n"
            "assert os.environ['TF_FORCE_GPU_ALLOW_GROWTH'] == 'true'\n"
            "assert not {'sklearn', 'matplotlib'} & set(sys.modules), 'imported all the same'\n"
            "import sklearn, matplotlib, pandas\nassert keras.backend.backend() == 'tensorflow'\nprint('well')")
    done = subprocess.run([sys.executable, "-c", code], cwd=runs.ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("well\n", "")


@pytest.mark.parametrize("order", [
    ("jobs.cnn.framework", "torch._dynamo", "triton"),
    ("torch._dynamo", "jobs.cnn.framework"),  # which loads triton
    ("triton", "jobs.cnn.framework", "torch._dynamo"),
    ("tensorflow", "jobs.cnn.framework", "torch._dynamo"),  # in a program of somebody else's
], ids=" ".join)
def test_frameworks_may_be_loaded_in_any_order(order: tuple[str, ...]) -> None:
    """triton after TensorFlow was a segmentation fault;
    a shared replica answers for a CNN and then for a Transformer."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed (the dev extra brings it on Linux x86-64)")
    code = ("import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
            "import torch\nweights = torch.nn.Parameter(torch.ones(2))\nweights.sum().backward()\n"
            "torch.optim.SGD([weights], 0.5).step()\nassert weights.tolist() == [0.5, 0.5]")
    done = subprocess.run([sys.executable, "-c", code, *order], cwd=runs.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_without_tensorflow_the_extra_to_install_is_named(tmp_path: Path) -> None:
    code = ("import importlib.util, sys\nfind = importlib.util.find_spec\n"
            "importlib.util.find_spec = lambda name, *rest: None if name == 'tensorflow' else find(name, *rest)\n"
            "from jobs.cnn.job import JOB\nfrom jobs.common.runs.run import main\nsys.exit(main(JOB))")
    done = subprocess.run([sys.executable, "-c", code, "--run.engine", "local", "--run.storage",
                           str(tmp_path / "storage")],
                          cwd=runs.ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'trainyard[tensorflow]'" in done.stderr + done.stdout
    assert not (tmp_path / "storage").exists()


def test_fit_under_the_multi_worker_strategy_is_still_broken() -> None:
    """keras-team/keras#20585. Where this test fails, it is mended, and the job may do without a step of its own."""
    code = ("import sys, numpy as np\nfrom jobs.cnn.framework import keras, tf\n"
            "cluster = tf.train.ClusterSpec({'worker': [f'127.0.0.1:{port}' for port in sys.argv[2:]]})\n"
            "where = {'task_type': 'worker', 'task_id': int(sys.argv[1]), 'rpc_layer': 'grpc'}\n"
            "resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(cluster, **where)\n"
            "with tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver).scope():\n"
            "    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])\n"
            "    model.compile('adam', keras.losses.SparseCategoricalCrossentropy(from_logits=True))\n"
            "model.fit(np.ones((8, 3)), np.zeros(8), verbose=0)\nprint('trained')")
    ports = [str(free_port("127.0.0.1")) for _ in range(2)]
    started = [subprocess.Popen([sys.executable, "-c", code, rank, *ports], cwd=runs.ROOT, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT, text=True) for rank in ("0", "1")]
    try:
        for process in started:
            said = process.communicate(timeout=120)[0]
            assert process.returncode != 0 and "PerReplica" in said, said
    finally:
        for process in started:
            process.kill()
            process.wait()
