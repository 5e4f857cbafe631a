"""The last parts of a report page: settings, files to open, where all of it is from."""

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any

from trainer.config import Config
from trainer.tables import section, text

FILES = {
    "result.json": "all figures of this page",
    "metrics.jsonl": "a row per log and per evaluation",
    "config.json": "settings, versions, devices",
    "pictures/predictions.png": "predictions of the best checkpoint",
}


def settings(values: Mapping[str, Any]) -> str:
    """Returns the tables of all settings, behind how many differ from their defaults.

    Args:
        values: Settings by name, as config.json has them.
    """
    changed, groups = [], dict[str, list[str]]()
    for field in dataclasses.fields(Config):
        if field.name not in values:
            continue
        value, default = values[field.name], field.default
        default = list(default) if isinstance(default, tuple) else default
        # On a phone a long name goes on in the next line, after an underscore.
        flag = f"<td><code>{field.name.replace('_', '_<wbr>')}</code></td>"
        if value != default:
            changed.append(
                f"<tr>{flag}<td>{_value(value)}</td><td>{_value(default)}</td>"
            )
        row = (
            f"<tr>{flag}<td>{_value(value)}</td><td>{text(field.metadata['help'])}</td>"
        )
        groups.setdefault(field.metadata["group"], []).append(row)
    shown = [_table("Not the default", "default", changed)] if changed else []
    shown += [_table(group, "meaning", rows) for group, rows in groups.items()]
    count = len(changed)
    differ = f"{count} differ{'s' if count == 1 else ''} from the default"
    return (
        f"<section><details><summary>Settings <small>{differ}</small></summary>"
        f"{''.join(shown)}</details></section>"
    )


def _table(title: str, last: str, rows: list[str]) -> str:
    return (
        f'<h3>{text(title)}</h3><div class="wide"><table><thead><tr><th>setting</th>'
        f"<th>value</th><th>{last}</th></tr></thead><tbody>{'</tr>'.join(rows)}</tr>"
        "</tbody></table></div>"
    )


def _value(value: Any) -> str:
    if value is None:
        return "–"
    value = ",".join(map(str, value)) if isinstance(value, list) else value
    return (
        f"<code>{text(str(value).lower() if isinstance(value, bool) else value)}</code>"
    )


def files(job_dir: str, log_dir: str, checkpoint: str) -> str:
    """Returns what to open, and commands that go on from here.

    Args:
        job_dir: Of the run; links are relative to the page, which lies there.
        log_dir: Where its events are.
        checkpoint: Path of the best.
    """
    links = "".join(
        f'<dt><a href="{path}">{path}</a></dt><dd>{what}</dd>'
        for path, what in FILES.items()
    )
    predict = ["python", "-m", "trainer.predict", f"--job_dir={job_dir}"]
    predict += ["--output_dir=masks", "PHOTOGRAPHS"]
    commands = (["tensorboard", "--logdir", log_dir], predict)
    shown = "".join(f"<pre>{text(shlex.join(words))}</pre>" for words in commands)
    return section(
        "Files to open",
        f"<dl>{links}<dt>best checkpoint</dt><dd><code>{text(checkpoint)}</code></dd>"
        '</dl><p class="note">Curves and events; masks of new photographs:</p>'
        f"{shown}",
    )


def provenance(config: Mapping[str, Any]) -> str:
    """Returns with what the run was made, as config.json tells."""
    about = {
        "command": shlex.join(config["command"]),
        "commit": config["commit"] or "–",
        "Python": config["python"],
        "packages": ", ".join(f"{k} {v}" for k, v in config["packages"].items()),
        "host": config["host"],
        "devices": ", ".join(config["devices"]),
        "replicas, workers": f"{config['replicas']}, {config['workers']}",
        "global batch": config["global_batch_size"],
    }
    told = "".join(f"<dt>{k}</dt><dd>{text(v)}</dd>" for k, v in about.items())
    return section("Provenance", f"<dl>{told}</dl>")
