"""Removes a task's comment from everything that this installation keeps.

Not here: Label Studio's own copy, and weights, which hold no comment but were moved by it: README says how to be rid of those.
"""

import json
from pathlib import Path

import redis

from toxicity.examples import BEGINNING, ExampleStore
from toxicity.label_studio import Changes


def forget_task(connection: redis.Redis, spool: Path, project: int, task: int) -> list[str]:
    """Remove a task's comment and what annotators decided on it, and keep that it was removed; return what was done, in words.

    Whatever comes of the task later is ignored. Redis rewrites its append-only file, in which the comment would stand on.

    Raises:
        redis.RedisError: Redis did not answer; ask again, it does no harm to do all of it twice.
    """
    store = ExampleStore(connection)
    hashes = store.text_hashes(project, sorted(store.snapshot(project, BEGINNING).targets))
    text = hashes.pop(task, None)
    store.apply(Changes(project, deleted_tasks=(task,)))
    done = ["its comment is removed from Redis" if text is not None else "Redis had no comment of it, and takes none from now on"]
    if text is not None and text not in hashes.values():
        store.forget_text_side(project, text)
    done += [f"{file} is removed, which held it" for file in _unusable(spool, project, task)]
    try:
        connection.bgrewriteaof()
        done.append("Redis is rewriting its append-only file, so that the disk forgets it too")
    except redis.ResponseError as error:
        if "in progress" in str(error):
            done.append("Redis was rewriting its append-only file already: ask again in a minute, or the disk keeps it")
        else:
            done.append(f"Redis may not rewrite its append-only file ({error}): run BGREWRITEAOF, or the disk keeps the comment")
    return done


def _unusable(spool: Path, project: int, task: int) -> list[Path]:
    """Remove the files of changes that could not be recorded and carry the task."""
    removed = []
    for file in sorted(spool.glob("*.unusable")):
        try:
            changes = json.loads(file.read_text(encoding="utf-8"))
            carried = {annotation["task_id"] for annotation in changes["annotations"]}
            is_other = changes["project"] != project or task not in carried
        except (ValueError, KeyError, TypeError):
            is_other = False  # damaged: what it holds is not known, and nothing can be made of it
        if not is_other:
            file.unlink()
            removed.append(file)
    return removed
