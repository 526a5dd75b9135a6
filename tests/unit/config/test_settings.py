import sys
from pathlib import Path
from types import ModuleType

import pytest

from decentral.config.resolve import import_task, on_machine, resolve_task, stated_here
from decentral.config.schema import SwarmConfig, TaskSection, WorkerConfig, diff, flatten
from decentral.config.settings import known_keys, load, with_values
from decentral.errors import ConfigError, ExitCode


def test_flag_beats_set_beats_file_beats_default(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('[run]\nrounds = 2\nseed = 2\nname = "from-file"\n[worker]\nport = 4000\n')
    settings = load(file, ["run.rounds=3", "run.seed=3"], {"run.rounds": 4, "worker.device": None})
    run = settings.swarm.run
    assert (run.name, run.seed, run.rounds) == ("from-file", 3, 4)
    assert settings.worker.port == 4000
    assert settings.worker.device == "cpu"
    assert settings.swarm.method == SwarmConfig().method


def test_only_what_was_stated_of_the_swarm_is_explicit():
    settings = load(None, ["run.seed=0", "worker.port=1", "data.paths=['a']"])
    assert settings.explicit == {"run.seed": 0, "data.paths": ("a",)}


def test_hyphens_and_text_without_quotes_are_accepted():
    settings = load(None, ["method.inner-steps=7", "run.name=mine", "task.settings.model.d-model=64"])
    assert settings.swarm.method.inner_steps == 7
    assert settings.swarm.run.name == "mine"
    assert settings.swarm.task.settings == {"model": {"d_model": 64}}


def test_a_name_gives_defaults_and_states_itself_alone():
    settings = load(None, ["method.outer_lr=0.5", "method.name=diloco"])
    method = settings.swarm.method
    assert method.outer_lr == 0.5
    assert (method.inner_steps, method.outer_momentum) == (500, 0.9)
    assert settings.explicit == {"method.outer_lr": 0.5, "method.name": "diloco"}


@pytest.mark.parametrize(
    ("assignment", "message", "hint"),
    [
        ("run.round=3", "unknown key 'run.round'", "'run.rounds'"),
        ("outer_lr=1", "unknown key 'outer_lr'", "'method.outer_lr'"),
        ("methd.codec=fp32", "unknown key 'methd.codec'", "'method.codec'"),
        ("worker.prot=1", "unknown key 'worker.prot'", "'worker.port'"),
        ("run=3", "run is a section", "run.NAME"),
        ("run.rounds", "not an assignment", "run.rounds=10"),
        (".rounds=3", "not an assignment", "run.rounds=10"),
        ("method.outer_lr=40", "method.outer_lr = 40: must be a number, above 0 and at most 10", ""),
        ("run.rounds=ten", 'run.rounds = "ten": must be a whole number, at least 1 and at most 10000000', ""),
        ("run.rounds=true", "run.rounds = true: must be a whole number", ""),
        ("run.rounds=2.5", "run.rounds = 2.5: must be a whole number", ""),
        ("timing.beat_s=nan", "timing.beat_s = nan: must be a number", ""),
        ("method.name=ddp", 'method.name = "ddp": must be one of local-sgd, diloco, muloco, streaming', ""),
        ("method.name=long", 'method.name = "long": must be one of local-sgd, diloco', ""),
        ("data.paths=3", "data.paths = 3: must be a list of texts", ""),
        ("worker.port=70000", "worker.port = 70000: must be a whole number, at least 0 and at most 65535", ""),
        ("worker.device=tpu", 'worker.device = "tpu": must be cpu, mps, cuda or cuda:N', ""),
        ("task.factory=lm", 'task.factory = "lm": must be the dotted name of a function', ""),
        ("worker.task=mine", 'worker.task = "mine": must be the dotted name of a function, such as', ""),
        ("task.settings=3", "task.settings = 3: must be a table", ""),
        ("method.delay_steps=9999", "method.delay_steps is 9999, which must be below method.inner_steps", ""),
        ("method.fragments=99", "method.fragments is 99, which must be at most method.inner_steps", ""),
        ("timing.ttl_s=1", "timing.ttl_s is 1, which must be at least twice timing.beat_s", ""),
        ("timing.max_patience_s=1", "timing.max_patience_s is 1, which must be at least timing.min_patience_s", ""),
    ],
)
def test_a_wrong_assignment_is_named_with_what_is_allowed(assignment, message, hint):
    with pytest.raises(ConfigError) as caught:
        load(None, [assignment])
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_every_wrong_value_is_named_at_once():
    with pytest.raises(ConfigError) as caught:
        load(None, ["run.rounds=0", "method.outer_lr=-1"])
    assert len(caught.value.message.splitlines()) == 2


def test_a_key_cannot_be_value_and_section():
    with pytest.raises(ConfigError, match=r"task\.settings\.a is given as a value and as a section"):
        load(None, ["task.settings.a=1", "task.settings.a.b=2"])


def test_an_unknown_key_in_a_file_names_the_file(tmp_path):
    (tmp_path / "c.toml").write_text("[run]\nsed = 1\n")
    with pytest.raises(ConfigError, match=r"c\.toml: unknown key 'run\.sed'") as caught:
        load(tmp_path / "c.toml")
    assert caught.value.hint == "Did you mean 'run.seed'?"


def test_an_unreadable_file_and_bad_toml_are_named(tmp_path):
    with pytest.raises(ConfigError, match=r"Cannot read the configuration .*none\.toml: No such file"):
        load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("run = [")
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML"):
        load(tmp_path / "bad.toml")


def test_diff_lists_every_differing_key_and_only_those():
    here = load(None, ["task.settings.model.d_model=64", "run.seed=1", "method.outer_lr=0.7", "task.settings.x='y'"])
    there = load(None, ["task.settings.model.d_model=128", "method.outer_lr=0.7"]).swarm
    assert diff(here.explicit, there) == [
        "task.settings.model.d_model: 64 here, 128 in the swarm",
        "run.seed: 1 here, 0 in the swarm",
        'task.settings.x: "y" here, not set in the swarm',
    ]


def test_the_digest_is_that_of_the_values_whatever_their_order():
    one = load(None, ["task.settings.a=1", "task.settings.b=2", "run.seed=0"]).swarm
    two = load(None, ["task.settings.b=2", "task.settings.a=1"]).swarm
    assert one.digest() == two.digest()
    assert one.digest() != load(None, ["task.settings.a=2", "task.settings.b=2"]).swarm.digest()


def test_a_config_survives_its_json():
    config = load(None, ["data.paths=['a', 'b']", "task.settings.model.d_model=64"]).swarm
    assert SwarmConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize("text", ["", "[]", '{"run": {"rounds": 0}}', '{"new_section": {}}', "\x00"])
def test_a_config_from_a_peer_is_checked(text):
    with pytest.raises(ConfigError, match="The swarm's configuration cannot be read"):
        SwarmConfig.from_json(text)


def test_every_known_key_is_in_the_documentation(request):
    text = (request.config.rootpath / "docs" / "configuration.md").read_text()
    assert [key for key in known_keys() if f"`{key}`" not in text] == []


def test_with_values_replaces_and_checks():
    changed = with_values(SwarmConfig(), {"run.rounds": 7})
    assert diff(flatten(changed), SwarmConfig()) == ["run.rounds: 7 here, 2000 in the swarm"]
    with pytest.raises(ConfigError, match=r"run\.rounds = 0"):
        with_values(SwarmConfig(), {"run.rounds": 0})


@pytest.fixture
def task(monkeypatch):
    module = ModuleType("a_task")
    module.build = lambda settings, seat: None
    monkeypatch.setitem(sys.modules, "a_task", module)
    return module


def test_a_task_fills_in_its_own_settings(task):
    task.resolve = lambda settings: {"width": 8, **settings}
    config = load(None, ["task.factory=a_task:build", "task.settings.depth=2"]).swarm
    assert resolve_task(config).task.settings == {"width": 8, "depth": 2}


def test_a_task_without_resolve_takes_settings_as_they_are(task):
    config = load(None, ["task.factory=a_task:build", "task.settings.depth=2"]).swarm
    assert resolve_task(config) == config


def test_a_task_that_is_not_there_is_named(task):
    with pytest.raises(ConfigError, match=r"no_such_module cannot be imported"):
        resolve_task(load(None, ["task.factory=no_such_module:build"]).swarm)
    with pytest.raises(ConfigError, match="a_task has no function biuld") as caught:
        resolve_task(load(None, ["task.factory=a_task:biuld"]).swarm)
    assert caught.value.hint == "Did you mean 'build'?"


def test_auto_states_nothing() -> None:
    settings = load(None, ["method.mean_codec=auto", "method.codec=fp32", "run.name=auto"])
    assert settings.explicit == {"method.codec": "fp32", "run.name": "auto"}
    assert settings.swarm.method.mean_codec == "auto"


@pytest.mark.parametrize("name", ["workers.lm:build", "workers.toy:build"])
def test_the_old_name_of_a_task_of_ours_is_refused_by_its_new_one(name):
    with pytest.raises(ConfigError, match=r"is now decentral\.workers\.") as caught:
        import_task(name)
    assert f"decentral.{name}" in caught.value.hint


def test_a_package_of_somebody_elses_may_have_that_name(tmp_path, monkeypatch):
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "__init__.py").write_text("")
    (tmp_path / "workers" / "lm.py").write_text("def build(settings, seat): ...")
    for name in [name for name in sys.modules if name.partition(".")[0] == "workers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    module, _ = import_task("workers.lm:build")
    assert Path(module.__file__) == tmp_path / "workers" / "lm.py"
    for name in ("workers", "workers.lm"):
        del sys.modules[name]


def test_a_run_may_name_no_task_and_a_machine_its_own(task):
    task.resolve = lambda settings: {"width": 8, **settings}
    swarm = load(None, ["task.factory=", "task.settings.depth=2"]).swarm
    assert resolve_task(swarm) == swarm
    assert on_machine(swarm, WorkerConfig()) == swarm
    here = on_machine(swarm, WorkerConfig(task="a_task:build"))
    assert (here.task.factory, here.task.settings) == ("a_task:build", {"width": 8, "depth": 2})
    assert swarm.task.factory == ""


def test_a_machines_own_task_goes_before_the_swarms(task):
    swarm = load(None, ["task.factory=nobody_has:this"]).swarm
    assert on_machine(swarm, WorkerConfig(task="a_task:build")).task.factory == "a_task:build"


def test_without_any_task_it_is_said_what_to_do():
    with pytest.raises(ConfigError, match="names no task") as caught:
        import_task("")
    assert "--task MODULE:FUNCTION (worker.task)" in caught.value.hint
    assert caught.value.exit_code == ExitCode.CONFIG


def test_a_joiner_that_states_a_task_of_its_own_is_told_where_it_belongs():
    there = load(None, ["task.factory="]).swarm
    assert diff(load(None, ["task.factory=mine:build"]).explicit, there) == [
        'task.factory: "mine:build" here, "" in the swarm (for this machine alone: worker.task)'
    ]


def test_values_that_come_as_they_are_have_their_keys_checked():
    with pytest.raises(ConfigError, match=r"unknown key 'method\.iner_steps'") as caught:
        load(None, (), {"method.iner_steps": 3})
    assert "method.inner_steps" in caught.value.hint


def test_of_a_swarms_configuration_nothing_is_imported_or_opened_that_nobody_has_named_here(task, tmp_path):
    task.resolve = lambda settings: {"width": 8, **settings}
    theirs = load(None, ["task.factory=a_task:build", 'data.paths=["/etc"]']).swarm
    with pytest.raises(ConfigError, match=r"task.factory is 'a_task:build'. It is not imported") as caught:
        on_machine(theirs, WorkerConfig())
    assert "--task a_task:build" in caught.value.hint
    assert "--trust-config" in caught.value.hint
    for own in (WorkerConfig(trust_config=True), WorkerConfig(task="a_task:build")):
        assert on_machine(theirs, own).task == theirs.task
        assert on_machine(theirs, own).data.paths == ()
    assert on_machine(theirs, WorkerConfig(trust_config=True, data=("mine",))).data.paths == ("mine",)
    for ours, is_ours in (("lm:build", True), ("lm:os", False), ("lm.model:build", True), ("..os:build", False)):
        swarm = theirs.model_copy(update={"task": TaskSection(factory=f"decentral.workers.{ours}")})
        if is_ours:
            assert on_machine(swarm, WorkerConfig()).task == swarm.task
        else:
            with pytest.raises(ConfigError, match="not imported"):
                on_machine(swarm, WorkerConfig())


def test_who_states_task_and_data_of_a_swarm_has_named_them_on_this_machine(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('[task]\nfactory = "mine:build"\n[data]\npaths = ["x"]\n')
    own = stated_here(load(file))
    assert (own.task, own.data) == ("mine:build", ("x",))
    elsewhere = stated_here(load(file, ["worker.task=other:build", 'worker.data=["y"]']))
    assert (elsewhere.task, elsewhere.data) == ("other:build", ("y",))
    assert stated_here(load()) == WorkerConfig()
    # Going on, what is stated now goes before what was stated then.
    (tmp_path / "was.toml").write_text(file.read_text() + '[worker]\ntask = "mine:build"\ndata = ["x"]\n')
    before = load(tmp_path / "was.toml").swarm
    now = stated_here(load(None, ["task.factory=new:build", 'data.paths=["z"]'], base=tmp_path / "was.toml"), before)
    assert (now.task, now.data) == ("new:build", ("z",))
    same = stated_here(load(None, base=tmp_path / "was.toml"), before)
    assert (same.task, same.data) == ("mine:build", ("x",))
