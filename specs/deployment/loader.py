"""From a YAML file to a `DeploymentSpec`, with every error at its line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from specs.deployment.grammar import NAME, Place
from specs.deployment.honoured import refuse_unhonoured
from specs.deployment.models import DeploymentSpec
from specs.deployment.written import DEPLOYMENT
from specs.yaml_source import Mapping, parse_yaml, read_yaml


@dataclass(frozen=True)
class LoadedDeployment:
    """A spec and where it came from: `lines` maps paths (`traffic[0].trace.file`) to lines of `file`."""

    spec: DeploymentSpec
    file: str | None
    lines: dict[str, int]

    @property
    def base_dir(self) -> Path:
        """The folder that relative files of the spec are meant from."""
        return Path(self.file).parent if self.file else Path()

    def refuse_unhonoured(self) -> None:
        """`NotHonouredError` with lines where the spec declares what this version does not honour."""
        refuse_unhonoured(self.spec, self.lines, self.file)


def load_deployment(path: str | Path, honour: bool = True) -> DeploymentSpec:
    """Read and check one deployment file.

    `InputError` says what is wrong with file, line and field. With `honour`, a statement that this version does not
    honour raises `NotHonouredError`. Relative files in the spec are meant from its folder and are not opened here.
    """
    loaded = read_deployment(path)
    if honour:
        loaded.refuse_unhonoured()
    return loaded.spec


def read_deployment(path: str | Path) -> LoadedDeployment:
    """The same with the lines kept, and without refusing what is not honoured."""
    return _loaded(read_yaml(path), str(path))


def parse_deployment(source: str | bytes, file: str | None = None) -> LoadedDeployment:
    """The same from text or bytes; `file` is what messages call it."""
    return _loaded(parse_yaml(source, file), file)


def _loaded(root: Mapping, file: str | None) -> LoadedDeployment:
    lines: dict[str, int] = {}
    spec: DeploymentSpec = DEPLOYMENT.read(root, Place(file, "", root.line, lines))
    stem = Path(file).stem if file else ""
    if "name" not in root.entries and NAME.fullmatch(stem):
        spec = spec.model_copy(update={"name": stem})
    return LoadedDeployment(spec, file, lines)
