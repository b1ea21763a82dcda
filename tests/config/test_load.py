"""The loader: order of the sources, and every problem at once with its value and origin."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

import pytest
from pydantic import Field, field_validator, model_validator

from mango.config import Frozen, Loaded, Problem, load, refuse
from mango.errors import ConfigError, MangoError


class Router(Frozen):
    type: Literal["token", "topk"] = "token"
    k: int = Field(1, ge=1)
    rate: float = 1.0


class Source(Frozen):
    source: Path
    revision: str | None = None


class Root(Frozen):
    seed: int = 0
    fast: bool = False
    names: tuple[str, ...] = ()
    router: Router = Router()
    models: dict[str, Source] = Field(default_factory=dict)

    @field_validator("names")
    @classmethod
    def _distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError(f"{list(names)} names one thing twice")
        return names

    @model_validator(mode="after")
    def _fits(self) -> Self:
        problems = []
        if self.router.k > len(self.names) and self.names:
            problems.append(
                Problem("router.k", f"{self.router.k} is more than the {len(self.names)} names", depends=("names",))
            )
        if self.seed < 0:
            problems.append(Problem("seed", f"{self.seed} is negative"))
        refuse(problems)
        return self


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.chdir(tmp_path)

    def read_text(text: str, *sets: str, **environ: str) -> Loaded[Root]:
        Path("params.yaml").write_text(text)
        return load(Root, Path("params.yaml"), environ=environ, overrides=sets)

    return read_text


def problems(read, text: str, *sets: str, **environ: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text, *sets, **environ)
    return str(caught.value).splitlines()


def test_later_sources_win_and_the_origin_of_each_value_is_known(read) -> None:
    loaded = read(
        "seed: 1\nrouter:\n  k: 2\n  rate: 1e-4\n",
        "router.k=4",
        MANGO_PARAM__router__k="3",
        MANGO_PARAM__names="[a, b, c, d]",
    )
    assert loaded.value == Root(seed=1, names=("a", "b", "c", "d"), router=Router(k=4, rate=1e-4))
    assert loaded.origin("seed") == "params.yaml:1"
    assert loaded.origin("router.rate") == "params.yaml:4"
    assert loaded.origin("router.k") == "--set router.k"
    assert loaded.origin("names") == "environment MANGO_PARAM__names"
    assert loaded.origin("router.type") == "default"
    assert ("router.k", 4, "--set router.k") in loaded.rows()


def test_a_whole_section_may_be_overridden(read) -> None:
    loaded = read("router: {k: 2}\n", "router={type: topk, k: 3}")
    assert loaded.value.router == Router(type="topk", k=3)
    assert loaded.origin("router.k") == "--set router"


def test_every_problem_is_reported_at_once(read) -> None:
    text = """\
seed: -1
fast: 1
router:
  type: tokn
  k: "4"
  rat: 2
models:
  base: {source: models/base, revison: main}
  code: {}
"""
    assert problems(read, text) == [
        "params.yaml:1 seed: -1 is negative",
        "params.yaml:2 fast: 1: wanted a valid boolean",
        "params.yaml:4 router.type: 'tokn' is not 'token' or 'topk'; did you mean 'token'?",
        "params.yaml:5 router.k: '4': wanted a valid integer",
        "params.yaml:6 router.rat: unknown key; did you mean 'rate'? Known here: k, rate, type",
        "params.yaml:8 models.base.revison: unknown key; did you mean 'revision'? Known here: revision, source",
        "params.yaml:9 models.code.source: is missing: give it a value",
    ]


def test_a_contradiction_names_the_place_that_set_the_value(read) -> None:
    text = "names: [a, b, c, d]\nrouter:\n  k: 9\n"
    assert problems(read, text) == ["params.yaml:3 router.k: 9 is more than the 4 names"]
    assert problems(read, text, "router.k=8") == ["--set router.k: 8 is more than the 4 names"]
    assert problems(read, text, MANGO_PARAM__router__k="7") == [
        "environment MANGO_PARAM__router__k: 7 is more than the 4 names"
    ]


def test_a_contradiction_with_a_wrong_value_is_not_reported(read) -> None:
    assert problems(read, "names: [a, a, b]\nrouter: {k: 9}\n") == [
        "params.yaml:1 names: ['a', 'a', 'b'] names one thing twice"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nseed: 2\n", 'params.yaml:2 key "seed" is given twice in one section: keep one of them'),
        ("seed: 1\n  k: [\n", "params.yaml:2 is not YAML: mapping values are not allowed here"),
        ("- 1\n", "params.yaml: holds a list, wanted a mapping of sections to parameters"),
        ("1: 2\n", "params.yaml:1 the key 1 is a number: put it in quotes"),
        ("router: !!python/name:os.system {}\n", "params.yaml: router has the YAML tag tag:yaml.org,2002:python/name"),
        ("seed: .nan\n", "params.yaml:1 seed: nan: wanted a valid integer"),
        ("router: {rate: .inf}\n", "params.yaml:1 router.rate: inf: must be a finite number"),
        ("seed: yes\n", "params.yaml:1 seed: 'yes': wanted a valid integer"),
        ("names: a\n", "params.yaml:1 names: 'a': wanted a list"),
        ("router: token\n", "params.yaml:1 router: 'token': wanted a section of KEY: VALUE"),
        ("names: [a, 3]\n", "params.yaml:1 names.1: 3: wanted a valid string"),
    ],
)
def test_what_a_document_may_not_hold(read, text: str, message: str) -> None:
    (line,) = problems(read, text)
    assert line.startswith(message)


def test_aliases_cannot_grow_without_bound(read) -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    (line,) = problems(read, "\n".join(lines))
    assert line == "params.yaml: stands for more than 20000 values once its aliases are followed"


def test_a_missing_or_undecodable_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: cannot be read \(No such file or directory\)"):
        load(Root, tmp_path / "gone.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"seed: \xff")
    with pytest.raises(ConfigError, match=r"latin\.yaml: byte 6 is not UTF-8"):
        load(Root, tmp_path / "latin.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (1 << 21))
    with pytest.raises(ConfigError, match=r"large\.yaml: has 2097152 bytes, more than"):
        load(Root, tmp_path / "large.yaml")


def test_an_empty_file_is_all_defaults(read) -> None:
    assert read("").value == Root()


def test_overrides_that_are_none(read) -> None:
    assert problems(read, "seed: 1\n", "router.k", "router..k=1", MANGO_PARAM__="1") == [
        "--set router.k: has no '=': write KEY=VALUE, for example router.type=topk",
        "environment MANGO_PARAM__: has an empty part in its key: write SECTION.KEY, for example router.type",
        "--set router..k: has an empty part in its key: write SECTION.KEY, for example router.type",
    ]
    assert problems(read, "seed: 1\n", "seed.k=1") == ["--set seed.k: seed is no section: set seed as a whole"]


def test_inside_a_dvc_stage_hidden_overrides_are_refused(read) -> None:
    lines = problems(read, "seed: 1\n", "names=[a b]", DVC_STAGE="merge", MANGO_PARAM__router__type="topk")
    assert lines == [
        "environment MANGO_PARAM__router__type: DVC does not see this inside stage 'merge': "
        "use `dvc exp run -S router.type=topk`",
        "--set names: DVC does not see this inside stage 'merge': use `dvc exp run -S 'names=[a b]'`",
    ]
    assert read("seed: 1\n", DVC_STAGE="merge").value.seed == 1


def test_the_error_is_a_value_error_that_the_command_line_knows(read) -> None:
    with pytest.raises(ValueError, match="unknown key") as caught:
        read("sed: 1\n")
    assert isinstance(caught.value, MangoError)


def test_parameters_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Root().seed = 1
