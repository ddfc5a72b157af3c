"""A sweep of train.py with the W&B client and a local server: every field of its runs."""

from __future__ import annotations

import pytest

from helpers import processes
from helpers.paths import ROOT
from helpers.wandb_server import hide_wandb, run_server

pytest.importorskip("wandb", reason="wandb is an optional extra")


@pytest.mark.slow
def test_a_sweep_of_train_py_labels_its_runs_and_uploads_its_results(tmp_path):
    (tmp_path / "words.txt").write_text("axon bouton calcium dendrite energy fusion " * 1500)
    command = [
        str(ROOT / "train.py"),
        "-m",
        "hydra/sweeper=random",
        "hydra.sweeper.optim.budget=2",
        "scale=smoke",
    ]
    command += [
        "data=text",
        f"data.path={tmp_path}/words.txt",
        "training.steps=2",
        "training.evaluations=1",
        "training.eval_batches=1",
    ]
    command += [
        "study.name=swept",
        "logger.tensorboard=false",
        "logger.tags=[mine]",
        "workers.count=1",
        "logger.record=[system,git,code]",
    ]
    with run_server() as server:
        done = processes.run(command, tmp_path, env=hide_wandb() | server.environment)
        assert done.returncode == 0, done.stderr
        kinds = {name: run.about["jobType"] for name, run in server.runs.items()}
        (controller,) = [name for name, kind in kinds.items() if kind == "controller"]
        prefix = controller.removesuffix("controller")
        assert kinds == {controller: "controller", f"{prefix}0": "search", f"{prefix}1": "search"}
        for index in range(2):
            run = server.runs[f"{prefix}{index}"]
            # Random points have no generations of more than one.
            assert run.about["tags"] == [
                "mine",
                "swept",
                "search",
                f"generation-{run.config['generation']}",
            ]
            assert run.about["groupName"] == "swept"
            assert run.about["displayName"] == f"swept-{index}"
            assert run.summary["evaluation_seconds"] > 0.0
            assert run.summary["state"] == "complete"
            assert run.summary["objective"] == run.summary["val_loss"]
            searched = {name: run.config[f"searched.{name}"] for name in run.config["searched"]}
            assert "synapse.calcium.alpha_ca" in searched
            assert all(run.config[name] == value for name, value in searched.items())
            assert not any(name.startswith("logger.searched") for name in run.config)
        losses = [server.runs[f"{prefix}{index}"].summary["val_loss"] for index in range(2)]
        marks = [server.runs[f"{prefix}{index}"].summary["is_best"] for index in range(2)]
        assert marks == [loss == min(losses) for loss in losses]
        kinds = {artifact["artifactTypeName"]: artifact for artifact in server.artifacts}
        assert b"parameters:" in kinds["parameters"]["files"]["best.yaml"]
        assert len(kinds["model"]["files"]["checkpoint.pt"]) > 1000
        assert any(name.endswith("gpt.py") for name in kinds["code"]["files"])
        assert server.unknown == []
        objectives = [
            row["search/objective"]
            for row in server.runs[controller].history
            if "search/objective" in row
        ]
        assert objectives == [
            pytest.approx(server.runs[f"{prefix}{index}"].summary["val_loss"]) for index in range(2)
        ]
