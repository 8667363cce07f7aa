"""What leads in MLflow from a run to its codec, the trainings and the reports of it: tags, and links for people."""

from __future__ import annotations

import re
import urllib.parse
from typing import Any

FINGERPRINT, CODEC, KIND = "corrdiff.fingerprint", "corrdiff.codec", "corrdiff.kind"

NOTE = "mlflow.note.content"
"""The tag that MLflow's page shows as a run's description, in Markdown."""

HEAD = "**Links of corrdiff**"
"""The head of what is written into a description; what stands before it is someone's own."""

MOST_RUNS = 100
"""Runs of one codec whose descriptions are kept up to date."""

_TITLES = {
    "phase1": "training, phase 1",
    "phase2": "training, phase 2",
    "phase3": "training, phase 3",
    "compress": "compression",
    "evaluate": "report",
}


def lineage_tags(provenance: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Make the tags that lead from a run to the training runs of its codec; of several codecs, `prefix` says which."""
    return {f"corrdiff.{prefix}{k}": str(v) for k, v in provenance.items() if k.endswith("mlflow_run")}


def renew_notes(client: Any, experiment_id: str, fingerprints: str) -> None:
    """Write the links into the descriptions of all runs of some codecs (their fingerprints, joined by commas)."""
    runs: dict[str, Any] = {}
    for digest in fingerprints.split(","):
        for run in client.search_runs(
            [experiment_id], f"tags.`{FINGERPRINT}` LIKE '%{digest}%'", max_results=MOST_RUNS
        ):
            runs[run.info.run_id] = run
    for run in list(runs.values()):
        for tag, run_id in run.data.tags.items():
            if re.fullmatch(r"corrdiff\.\w+_mlflow_run", tag) and run_id not in runs:
                trained = _find(client, run_id)
                if trained is not None:
                    runs[run_id] = trained
    for run in runs.values():
        note = _note(run, runs, experiment_id)
        before = run.data.tags.get(NOTE, "")
        of_people = before.partition(HEAD)[0].rstrip()
        renewed = f"{of_people}\n\n{note}" if of_people else note
        if renewed != before:
            client.set_tag(run.info.run_id, NOTE, renewed)


def _find(client: Any, run_id: str) -> Any:
    """A run, where this server has it: a codec may have been trained elsewhere."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException:
        return None


def _note(run: Any, runs: dict[str, Any], experiment_id: str) -> str:
    """The links of one run, among all that are known."""
    tags = run.data.tags
    digests = set(tags.get(FINGERPRINT, "").split(",")) - {""}
    lines = [HEAD, ""]
    if CODEC in tags:
        lines.append(f"- codec: `{tags[CODEC]}`")
    trained = [tags[tag] for tag in sorted(tags) if re.fullmatch(r"corrdiff\.\w+_mlflow_run", tag)]
    akin = [i for i, other in runs.items() if digests & set(other.data.tags.get(FINGERPRINT, "").split(","))]
    for run_id in dict.fromkeys([*trained, *akin]):
        if run_id in runs and run_id != run.info.run_id:
            lines += _links(runs[run_id], experiment_id)
    for digest in sorted(digests):
        query = urllib.parse.quote(f"tags.`{FINGERPRINT}` LIKE '%{digest}%'", safe="")
        lines.append(
            f"- [all runs of the codec {digest[:16]}](#/experiments/{experiment_id}/runs?searchFilter={query})"
        )
    return "\n".join(lines)


def _links(run: Any, experiment_id: str) -> list[str]:
    kind = run.data.tags.get(KIND, "")
    page = f"#/experiments/{experiment_id}/runs/{run.info.run_id}"
    lines = [f"- [{_TITLES.get(kind, kind)}: {_plain(run.info.run_name)}]({page})"]
    if kind == "evaluate":
        lines.append(f"- [the report's page]({page}/artifacts/index.html)")
    elif kind in ("phase1", "phase2", "phase3"):
        lines.append(f"- [the codec's configuration after it]({page}/artifacts/codec/config.json)")
    return lines


def _plain(name: str) -> str:
    """A run's name, which a user chose, without what Markdown would take for its own."""
    return re.sub(r"[^\w.\- ]", "_", name)
