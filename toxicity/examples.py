"""Annotation events and examples in Redis: what annotators decided, and what is new since a version.

Not here: Label Studio's JSON (label_studio.py), and when to train (training_queue.py). The truth is each project's stream
of events; a version's watermark is the id of the last event that it has learned. Every change is one Lua script, so an
annotation and the request to train on it are written together or not at all.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import redis

from toxicity.comments import LabelledComment
from toxicity.hold_out import text_hash
from toxicity.label_studio import Annotation, Changes
from toxicity.labels import LABELS

BEGINNING = "0-0"  # the watermark of a version that has learned no event
BEHIND_KEY = "toxicity:behind"
PROJECTS_KEY = "toxicity:projects"
SKIPPED, DELETED = "skipped", "deleted"  # in the place of votes: a decision for nothing, a tombstone
TEXTS_AT_ONCE = 500
EVENTS_AT_ONCE = 1000

# KEYS: annotations, texts, votes, events, behind, projects. `annotations` maps an annotation to "updated_at\ntask\nvotes",
# `texts` a task to its comment ('' once the task is deleted), `votes` a task to how many annotations decide on it.
_SHARED_LUA = """
local annotations, texts, votes, events, behind, projects = unpack(KEYS)
local project = ARGV[1]
local changed = 0
local function set_annotation(id, task, updated_at, new, text)
  local old_updated_at, old_task, old = '', task, 'skipped'
  local known = redis.call('HGET', annotations, id)
  if known then old_updated_at, old_task, old = string.match(known, '^(.-)\\n(.-)\\n(.*)$') end
  if old == 'deleted' or old_updated_at > updated_at and new ~= 'deleted' then return end
  if new == 'deleted' then task = old_task end
  if redis.call('HGET', texts, task) == '' then return end
  redis.call('HSET', annotations, id, updated_at .. '\\n' .. task .. '\\n' .. new)
  local counts, counted = new ~= 'skipped' and new ~= 'deleted', old ~= 'skipped'
  if counts and not counted then redis.call('HINCRBY', votes, task, 1) end
  local differs = counts ~= counted or counts and new ~= old
  if counts then
    differs = differs or redis.call('HGET', texts, task) ~= text
    redis.call('HSET', texts, task, text)
  elseif counted and redis.call('HINCRBY', votes, task, -1) <= 0 then
    redis.call('HDEL', votes, task)
    redis.call('HDEL', texts, task)
  end
  if differs then
    redis.call('XADD', events, '*', 'task', task)
    changed = changed + 1
  end
end
local function fall_behind()
  redis.call('SADD', projects, project)
  if changed > 0 then
    local now = redis.call('TIME')
    redis.call('ZADD', behind, 'NX', now[1], project)
  end
  return changed
end
"""
_RECORD_LUA = (
    _SHARED_LUA
    + """
for i = 2, #ARGV, 5 do set_annotation(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]) end
return fall_behind()
"""
)
_DELETE_ANNOTATIONS_LUA = (
    _SHARED_LUA
    + """
for i = 2, #ARGV do set_annotation(ARGV[i], '', '', 'deleted', '') end
return fall_behind()
"""
)
_DELETE_TASKS_LUA = (
    _SHARED_LUA
    + """
for i = 2, #ARGV do
  redis.call('HSET', texts, ARGV[i], '')
  if redis.call('HDEL', votes, ARGV[i]) == 1 then
    redis.call('XADD', events, '*', 'task', ARGV[i])
    changed = changed + 1
  end
end
return fall_behind()
"""
)
_CAUGHT_UP_LUA = """
local next = redis.call('XRANGE', KEYS[1], '(' .. ARGV[2], '+', 'COUNT', 1)
if #next == 0 then return redis.call('ZREM', KEYS[2], ARGV[1]) end
redis.call('ZADD', KEYS[2], math.floor(tonumber(string.match(next[1][1], '^%d+')) / 1000), ARGV[1])
return 0
"""


@dataclass(frozen=True)
class Snapshot:
    """A project's examples at one moment: task -> targets, the tasks changed since a watermark, and the new watermark."""

    watermark: str
    targets: Mapping[int, tuple[float | None, ...]]
    changed: frozenset[int]


class ExampleStore:
    """Reads and writes the examples of every project in one Redis."""

    def __init__(self, connection: redis.Redis) -> None:
        """Keep a client; it is not asked for anything yet."""
        self._redis = connection
        self._record = connection.register_script(_RECORD_LUA)
        self._delete_annotations = connection.register_script(_DELETE_ANNOTATIONS_LUA)
        self._delete_tasks = connection.register_script(_DELETE_TASKS_LUA)
        self._caught_up = connection.register_script(_CAUGHT_UP_LUA)

    def apply(self, changes: Changes) -> int:
        """Record what a webhook event means, in one atomic write; return how many examples it changed.

        Events may come twice or late: an annotation's newest revision counts, and what was deleted stays deleted.

        Raises:
            redis.RedisError: nothing was recorded.
        """
        project = changes.project
        if changes.deleted_tasks:
            projects = self.projects() if project is None else [project]
            return sum(self._run(self._delete_tasks, each, changes.deleted_tasks) for each in projects)
        if changes.deleted_annotations:
            projects = self.projects() if project is None else [project]
            return sum(self._run(self._delete_annotations, each, changes.deleted_annotations) for each in projects)
        if project is None:
            return 0
        if changes.project_deleted:
            self._forget(project)
            return 0
        return self._run(self._record, project, _record_arguments(changes.annotations)) if changes.annotations else 0

    def _run(self, script: Any, project: int, arguments: Iterable[object]) -> int:
        keys = [*self._keys(project), BEHIND_KEY, PROJECTS_KEY]
        return int(script(keys=keys, args=[project, *arguments]))

    @staticmethod
    def _keys(project: int) -> list[str]:
        return [f"toxicity:{{{project}}}:{part}" for part in ("annotations", "texts", "votes", "events")]

    @staticmethod
    def _sides_keys(project: int) -> tuple[str, str]:
        return f"toxicity:{{{project}}}:held-out", f"toxicity:{{{project}}}:held-out-texts"

    def sides(self, project: int) -> dict[int, bool]:
        """Return the tasks that were assigned a side: task -> whether it is held out."""
        return self._read_sides(self._sides_keys(project)[0])

    def text_sides(self, project: int) -> dict[int, bool]:
        """Return the texts (text_hashes) that were assigned a side, those of deleted tasks too."""
        return self._read_sides(self._sides_keys(project)[1])

    def _read_sides(self, key: str) -> dict[int, bool]:
        return {int(number): side == b"1" for number, side in self._redis.hscan_iter(key, count=1000)}

    def assign(self, project: int, sides: Mapping[int, bool], text_sides: Mapping[int, bool] = MappingProxyType({})) -> None:
        """Keep the sides of tasks, and of texts, that have none yet; those that have one stay on it."""
        with self._redis.pipeline(transaction=True) as pipeline:
            for key, numbers in zip(self._sides_keys(project), (sides, text_sides), strict=True):
                for number, held_out in numbers.items():
                    pipeline.hsetnx(key, str(number), str(int(held_out)))
            pipeline.execute()

    def forget_text_side(self, project: int, text: int) -> None:
        """Remove a text (text_hash) from those that were assigned a side."""
        self._redis.hdel(self._sides_keys(project)[1], str(text))

    def _forget(self, project: int) -> None:
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.delete(*self._keys(project), *self._sides_keys(project))
            pipeline.zrem(BEHIND_KEY, project)
            pipeline.srem(PROJECTS_KEY, project)
            pipeline.execute()

    def projects(self) -> list[int]:
        """Return every project that has sent an annotation, ascending."""
        return sorted(int(project) for project in cast(set[bytes], self._redis.smembers(PROJECTS_KEY)))

    def behind(self) -> dict[int, int]:
        """Return the projects with unlearned changes, each with when the first of them came (Redis' clock, epoch seconds)."""
        entries = cast(list[tuple[bytes, float]], self._redis.zrange(BEHIND_KEY, 0, -1, withscores=True))
        return {int(project): int(since) for project, since in entries}

    def now(self) -> int:
        """Return Redis' clock in epoch seconds: the one that behind() is measured by."""
        return self._redis.time()[0]

    def newest_event(self, project: int) -> str | None:
        """Return the id of the project's last event; None where there was none."""
        last = cast(list[tuple[bytes, Any]], self._redis.xrevrange(self._keys(project)[3], count=1))
        return last[0][0].decode() if last else None

    def changed_since(self, project: int, watermark: str, at_most: int | None = None) -> set[int]:
        """Return the tasks whose examples are new or changed after a watermark; deleted ones are nothing to learn.

        With `at_most` reading stops at so many tasks, however far the project is behind.
        """
        return self._read_events(project, watermark, at_most)[1]

    def _read_events(self, project: int, watermark: str, at_most: int | None) -> tuple[str, set[int]]:
        """Return how far the events were read, and the tasks in them that still have an example: `at_most` so many."""
        _, _, votes, events = self._keys(project)
        tasks: set[int] = set()
        while True:
            page = self._redis.xrange(events, min=f"({watermark}", count=EVENTS_AT_ONCE)
            entries = [(entry, fields[b"task"]) for entry, fields in cast(list[tuple[bytes, dict[bytes, bytes]]], page)]
            if not entries:
                return watermark, tasks
            named = list({task for _, task in entries})
            alive = cast(list[bytes | None], self._redis.hmget(votes, named))
            learnable = {task for task, count in zip(named, alive, strict=True) if count is not None}
            for entry, task in entries:
                if at_most is not None and len(tasks) >= at_most:
                    return watermark, tasks
                watermark = entry.decode()
                tasks |= {int(task)} if task in learnable else set()

    def caught_up(self, project: int, watermark: str) -> bool:
        """Take a project off the list of those behind, unless events came after the watermark.

        Then it is behind, and its wait begins with the first of them. Atomic. Returns whether the project is caught up.
        """
        return bool(self._caught_up(keys=[self._keys(project)[3], BEHIND_KEY], args=[project, watermark]))

    def snapshot(self, project: int, watermark: str, at_most: int | None = None) -> Snapshot:
        """Return the project's examples, with what changed since the watermark: `at_most` so many tasks, the oldest first.

        The events are read first: an example that changes meanwhile is read in its newer form and learned again later.
        """
        annotations, _, votes, _ = self._keys(project)
        reached, changed = self._read_events(project, watermark, at_most)
        alive = {int(task) for task in cast(list[bytes], self._redis.hkeys(votes))}
        # By annotation first: a scan may return an entry twice while the hash grows, and nobody votes twice.
        values = dict(self._redis.hscan_iter(annotations, count=1000))
        cast_votes: dict[int, list[str]] = {}
        for value in values.values():
            _, task, decided = value.decode().split("\n")
            if decided not in (SKIPPED, DELETED) and int(task) in alive:
                cast_votes.setdefault(int(task), []).append(decided)
        targets = {task: majority(decided) for task, decided in cast_votes.items()}
        return Snapshot(reached, targets, frozenset(changed & targets.keys()))

    def comments(self, project: int, snapshot: Snapshot, tasks: Sequence[int]) -> list[LabelledComment]:
        """Return the examples of tasks, their texts read from Redis.

        Left out is what nothing can be learned from: blank comments, ones deleted meanwhile, and where every vote is tied.
        """
        return [
            LabelledComment(text, snapshot.targets[task])
            for task, text in self._texts(project, tasks)
            if text.strip() and any(target is not None for target in snapshot.targets[task])
        ]

    def text_hashes(self, project: int, tasks: Sequence[int]) -> dict[int, int]:
        """Return for each task a number: the same for tasks with the same text (hold_out.text_hash), its own for one without."""
        alone = {task: -1 - task for task in tasks}
        return alone | {task: text_hash(text) for task, text in self._texts(project, tasks)}

    def _texts(self, project: int, tasks: Sequence[int]) -> Iterator[tuple[int, str]]:
        for start in range(0, len(tasks), TEXTS_AT_ONCE):
            portion = tasks[start : start + TEXTS_AT_ONCE]
            texts = cast(list[bytes | None], self._redis.hmget(self._keys(project)[1], [str(task) for task in portion]))
            yield from ((task, text.decode("utf-8", "surrogatepass")) for task, text in zip(portion, texts, strict=True) if text)


def _record_arguments(annotations: Iterable[Annotation]) -> Iterable[object]:
    for annotation in annotations:
        # surrogatepass: a lone surrogate half is legal JSON, and must not cost an annotation.
        text = annotation.text.encode("utf-8", "surrogatepass") or b" "
        decided = SKIPPED if annotation.targets is None else votes_text(annotation.targets)
        yield from (annotation.annotation_id, annotation.task_id, annotation.updated_at.replace("\n", ""), decided, text)


def votes_text(targets: Sequence[float | None]) -> str:
    """Return six targets as six characters, `?` where the label was not offered."""
    return "".join("?" if target is None else str(int(target)) for target in targets)


def majority(decided: Sequence[str]) -> tuple[float | None, ...]:
    """Combine several annotators' votes on one comment by majority, label by label; a tie decides nothing."""
    combined: list[float | None] = []
    for column in range(len(LABELS)):
        yes, no = (sum(votes[column] == character for votes in decided) for character in "10")
        combined.append(None if yes == no else float(yes > no))
    return tuple(combined)
