"""Any Hydra application: its jobs see under our sweeper what they see under Hydra's own."""

import json
import subprocess
import sys
from typing import NamedTuple

import pytest

from helpers import processes
from helpers.paths import APPS
from synaptune.study.reader import find_study


class App(NamedTuple):
    """An application: the files of its folder `conf`, and the words of a multirun of it."""

    files: dict[str, str]
    words: tuple[str, ...]
    jobs: int


QUICK = ("values of every type", "a mandatory group", "groups with our names", "the last word")
ONE_TWO = {"db/one.yaml": "name: one\nport: 1\n", "db/two.yaml": "name: two\nport: 2\n"}
APPLICATIONS = {
    "values that only a job can compute": App(
        {
            "config.yaml": "x: 1\nfolder: ${hydra:runtime.output_dir}\nnumber: ${hydra:job.num}\n"
            "title: ${hydra:job.name}-${hydra:job.override_dirname}\nyear: ${now:%Y}\n"
            "twice: ${double:${x}}\nuser: ${oc.env:APP_USER}\nother: ${oc.env:APP_NONE,nobody}\n"
        },
        ("x=1,2",),
        2,
    ),
    "mandatory values": App(
        {"config.yaml": "x: ???\nname: run_${x}\nlist: ['${x}', '${name}']\n"}, ("x=1,2",), 2
    ),
    "a mandatory group": App(
        {"config.yaml": "defaults: [{db: '???'}, _self_]\nurl: ${db.name}:${db.port}\n", **ONE_TWO},
        ("db=one,two", "db.port=7,8"),
        4,
    ),
    "one group in two packages": App(
        {"config.yaml": "defaults: [{db@source: one}, {db@target: two}, _self_]\n", **ONE_TWO},
        ("db@source=one,two", "db@target=two,one"),
        4,
    ),
    "all choices of a group, and a new group": App(
        {"config.yaml": "defaults: [{db: one}, _self_]\n", **ONE_TWO, "opt/sgd.yaml": "lr: 1\n"},
        ("db=glob(*)", "+opt=sgd", "db.port=range(1,6)"),
        10,
    ),
    "mappings, lists and elements": App(
        {
            "config.yaml": "opt: {name: adam, wd: 0.0}\nlayers: [1, 2]\n"
            "stack: [{size: 1}, {size: 2}]\n"
        },
        ("opt={name:sgd,wd:1},{name:adam,wd:2}", "layers.0=5,6", "layers=[3,4],[5,6,7]"),
        8,
    ),
    "new, forced and deleted names": App(
        {"config.yaml": "x: 1\ny: 2\nopt: {a: 1}\n"},
        ("+z=1,2", "++x=3,4", "~y", "+opt.b=c,d"),
        8,
    ),
    "the last word": App(
        {"config.yaml": "defaults: [typed, _self_]\nx: 1\ny: 2\nz: 3\n"},
        ("x=1,2", "y=5", "x=0.3", "y=6,7", "color=BLUE,RED", "z=1,2", "z=choice('${y}',9)"),
        8,
    ),
    "the last word leaves nothing to sweep": App(
        {"config.yaml": "x: 1\n"}, ("x=1,2", "+y=5,6", "x=3", "+y=7"), 1
    ),
    "no word at all": App({"config.yaml": "x: 1\nhydra: {sweeper: {params: {}}}\n"}, (), 1),
    "values of every type": App(
        {"config.yaml": "v: 0\n"},
        (r"v=null,true,1,1.5,1e-3,text,'1','true','a b','it\'s',a-b,'','é',[1,'2'],{a:null}",),
        15,
    ),
    "groups with our names": App(
        {
            "config.yaml": "x: 1\nlogger: {project: mine, group: red, job_type: train, tags: a b}\n"
            "search_space: {parameters: [a, b], x: [0, 1]}\nsearch: {depth: 3}\nstudy: pilot\n"
            "workers: 4\ntrial: 7\nstop: [1]\nnotify: true\nseed: {data: 1}\nmodel: resnet\n"
            "synapse: none\npruner: {name: shears}\nobjective: loss\ntraining: ${hydra:job.num}\n"
            "name: mine\ntuned: false\n"
        },
        ("x=1,2", "logger.group=blue,green"),
        4,
    ),
    "settings of Hydra": App(
        {
            "config.yaml": "x: 1\ny: 2\nhydra:\n  job: {chdir: true, env_set: {FROM_HYDRA: yes}}\n"
            "  sweep: {subdir: 'x_${x}-${hydra.job.num}'}\n"
            "  sweeper: {params: {x: '1,2', y: 5}}\n  output_subdir: .hydra\n"
        },
        (),
        2,
    ),
}


def start(folder, app, *words):
    """Start an application as a user does, from its own folder."""
    for name, text in app.files.items():
        path = folder / "conf" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    env = {"SEEN": str(folder / "seen"), "APP_USER": "anna"}
    return processes.start([str(APPS / "recorder.py"), "-m", *app.words, *words], folder, env=env)


def read_jobs(folder, process):
    """Wait for the end; return what each job saw, and the output."""
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stdout + stderr
    text = (folder / "seen").read_text().replace("~y=null", "~y")  # as Hydra's own sweeper says it
    jobs = [json.loads(line) for line in text.splitlines()]
    for job in jobs:  # the order of the points is the sweeper's own
        for key in ("number", "training"):
            job["config"].pop(key, None)
    return sorted(json.dumps(job, sort_keys=True) for job in jobs), stdout


@pytest.mark.parametrize(
    "app",
    [
        pytest.param(app, id=name, marks=[] if name in QUICK else pytest.mark.slow)
        for name, app in APPLICATIONS.items()
    ],
)
def test_a_job_sees_the_same_under_both_sweepers(tmp_path, app):
    folders = [tmp_path / "hydra", tmp_path / "ours"]
    started = [start(folders[0], app), start(folders[1], app, "hydra/sweeper=grid")]
    (expected, _), (jobs, output) = map(read_jobs, folders, started)
    assert len(expected) == app.jobs
    assert jobs == expected
    assert f"{app.jobs} trials finished, 0 failed" in output


def sweep(folder, program, *words, env=None):
    return processes.run([str(APPS / program), "-m", *words], folder, env=env)


def test_a_point_that_fails_is_one_failed_trial_with_its_reason(tmp_path):
    whats = "number,none,text,flag,list,tensor,f32,i64,array,arrays,error"
    secret = "hunter2-s3cret"
    for words, code in (["+study.name=a", f"what={whats}"], 0), (["+study.name=b", "x=1,a"], 0):
        done = sweep(
            tmp_path,
            "failing.py",
            "hydra/sweeper=grid",
            "hydra.sweeper.optim.max_failure_rate=1",
            *words,
            env={"APP_PASSWORD": secret},
        )
        assert done.returncode == code, done.stderr
    trials = find_study(str(tmp_path / "outputs/studies/a")).get_phase_trials("search")
    results = {trial.values["what"]: trial.objective or trial.reason for trial in trials}
    numbers = {"number": 2.0, "tensor": 3.0, "f32": 4.0, "i64": 5.0, "array": 6.0}
    assert {name: results.pop(name) for name in numbers} == numbers
    kinds = {"none": "NoneType", "text": "str", "flag": "bool", "list": "list"}
    assert results.pop("arrays").startswith("the task returned ndarray of shape (2,): ")
    said = {what: f"the task returned {kind}, expected a number" for what, kind in kinds.items()}
    assert results == {**said, "error": "RuntimeError: no such data set"}
    stored = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(secret.encode() in path.read_bytes() for path in stored)


def test_a_sweep_of_failed_trials_alone_says_why_and_ends_with_a_code(tmp_path):
    done = sweep(tmp_path, "failing.py", "hydra/sweeper=grid", "what=error", "x=1,2")
    assert done.returncode == 2
    assert "got 2 trials, and every one failed\n  2 x RuntimeError: no such data set" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_sweep_does_not_end_with_its_output(tmp_path):
    """A full disk behind a log file, and a reader such as `head -1` that leaves."""
    words = f"{sys.executable} {APPS / 'failing.py'} -m hydra/sweeper=grid what=number x=1,2"
    for name, rest in {"full": "> /dev/full", "reader": "| head -1"}.items():
        command = f"set -o pipefail; {words} +study.name={name} {rest}"
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), name
        assert len(find_study(str(tmp_path / "outputs/studies" / name)).search_trials) == 2
    text = (tmp_path / "outputs/studies/full/best.yaml").read_text()
    assert "use: its parameters as overrides NAME=VALUE" in text
    assert "train.py" not in text


# The search space of the official example of hydra-nevergrad-sweeper, in its forms.
NEVERGRAD = """
defaults: [override hydra/sweeper: nevergrad]
hydra:
  sweeper:
    optim: {optimizer: OnePlusOne, budget: 12, num_workers: 10}
    version: 1
    parametrization:
      db: [mnist, cifar]
      lr: {init: 0.02, step: 2.0, log: true}
      dropout: {lower: 0.0, upper: 1.0}
      batch_size: {lower: 4, upper: 16, integer: true}
      fixed: 3
db: cifar
lr: 0.01
dropout: 0.6
batch_size: 8
fixed: 1
"""


@pytest.mark.parametrize(
    "words",
    [(), ("db=mnist,cifar", "batch_size=4,8,16", "lr=tag(log, interval(0.001, 1))")],
    ids=["file", "command line"],
)
def test_the_example_of_the_nevergrad_sweeper_runs_as_it_is(tmp_path, words):
    app = App({"config.yaml": NEVERGRAD}, (*words, "dropout=interval(0,1)")[: len(words) + 1], 12)
    jobs, output = read_jobs(tmp_path, start(tmp_path, app))
    assert "12 trials finished, 0 failed" in output
    configs = [json.loads(job)["config"] for job in jobs]
    assert len(configs) == 12
    assert {config["fixed"] for config in configs} == {3}
    assert {config["db"] for config in configs} == {"mnist", "cifar"}
    assert all(0.0 <= config["dropout"] <= 1.0 for config in configs)
    assert {type(config["batch_size"]) for config in configs} == {int}
    trials = find_study(str(tmp_path / "outputs/studies/recorder-oneplusone")).search_trials
    assert [trial.facts["generation"] for trial in trials] == [0] * 10 + [1] * 2
