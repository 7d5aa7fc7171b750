"""What answers now: the live version of each project in this process, and its swap for a newer one.

Not here: how a version is loaded and checked (toxicity/loading.py). A new version is loaded beside the old one and then one
reference is replaced, so a request that took the old one finishes on it. A version that cannot be loaded is refused and
the old one goes on.
"""

import gc
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from toxicity.examples import BEGINNING
from toxicity.settings import Settings
from toxicity.versions import BASE_PROJECT, STARTER_NUMBER, LoadedVersion, ProjectVersions, VersionError

logger = logging.getLogger(__name__)

Loader = Callable[[Settings, ProjectVersions, int], LoadedVersion]

MOST_PROJECTS = 1000  # followed; those without a version of their own cost little, but each is looked after
REFUSED_SECONDS = 60.0  # a refused version is tried again after so long: a full disk or a slow mount may have been the cause


def load(settings: Settings, versions: ProjectVersions, number: int) -> LoadedVersion:
    """Load a version with TensorFlow, which is imported here and not above: /health has to answer while that takes seconds."""
    from toxicity.loading import load_version

    return load_version(settings, versions, number)


class LiveModels:
    """The live version of every project that was asked for. Safe to use from several threads."""

    def __init__(self, settings: Settings, loader: Loader = load) -> None:
        """Nothing is loaded yet; start() begins that in the background."""
        self._settings = settings
        self._loader = loader
        self._live: dict[int, LoadedVersion] = {}
        self._asked: dict[int, float] = {}  # when each project was asked for last
        self._refused: dict[tuple[int, int], float] = {}
        self._loading = threading.Lock()
        self._stopping = threading.Event()
        self._follower = threading.Thread(target=self._follow, name="follow-versions", daemon=True)

    def start(self) -> None:
        """Begin to load the starter and to follow what is published."""
        self._follower.start()

    def close(self) -> None:
        """Stop following; what is loaded goes on answering."""
        self._stopping.set()
        if self._follower.is_alive():
            self._follower.join()

    def of(self, project: int | None) -> LoadedVersion:
        """Return the live version of a project (None: the base's), loading it if this process never did.

        Keep the returned reference for the whole of a request: it never changes, whatever is published meanwhile.
        """
        project = BASE_PROJECT if project is None else project
        self._asked[project] = time.monotonic()
        live = self._live.get(project)
        if live is None:
            with self._loading:
                live = self._first(project)
                self._let_go()
        return live

    def version_in_service(self, project: int | None) -> str:
        """Return the name of the version that answers, or will answer, for a project; at once, without loading."""
        versions = self._versions(BASE_PROJECT if project is None else project)
        live = self._live.get(versions.project)
        try:
            return live.name if live is not None else versions.name(versions.current())
        except VersionError:
            return self._versions(BASE_PROJECT).name(STARTER_NUMBER)

    def swap_where_behind(self) -> None:
        """Look once for newly published (or rolled back) versions, and swap to them; the base first, as others rest on it."""
        for project in sorted(self._live.copy()):
            names = self._swapped(project)
            if names is not None:
                # Keras models are reference cycles: without this the old one would stay until some later collection.
                gc.collect()
                logger.info("project %d: swapped %s for %s", project, *names)

    def _swapped(self, project: int) -> tuple[str, str] | None:
        """Swap a project's version, if there is a newer one that loads; return the names of the old and the new one."""
        live = self._live.get(project)
        if live is None:  # let go meanwhile
            return None
        try:
            wanted = self._versions(project).current()
        except (VersionError, OSError) as error:
            logger.error("project %d: stays on %s: %s", project, live.name, error)
            return None
        refused = self._is_refused(project, wanted)
        if wanted == live.number or refused:
            # What has no version of its own, or none that loads, follows the base.
            rests_on_base = live.number == STARTER_NUMBER and project != BASE_PROJECT
            if not rests_on_base or live.name == self._live[BASE_PROJECT].name:
                return None
            wanted = STARTER_NUMBER
        with self._loading:
            newer = self._checked(project, wanted)
            if newer is None or project not in self._live:
                return None
            self._live[project] = newer
            self._let_go()
        return live.name, newer.name

    def _let_go(self) -> None:
        """Keep those projects that were asked for last. A request that has a version keeps it to its end."""
        recent = sorted(self._live.keys() - {BASE_PROJECT}, key=lambda project: self._asked.get(project, 0.0), reverse=True)
        own = [project for project in recent if self._live[project].number != STARTER_NUMBER]
        for project in {*own[self._settings.live_models :], *recent[MOST_PROJECTS:]}:
            logger.info("project %d: %s let go: others were asked for since", project, self._live[project].name)
            del self._live[project]
        self._asked = {project: at for project, at in self._asked.items() if project in self._live}

    def _follow(self) -> None:
        while True:
            try:
                with self._loading:
                    self._first(BASE_PROJECT)
                self.swap_where_behind()
            except Exception:  # the thread must outlive any fault, or the process would serve old weights for ever
                logger.exception("looking for new versions failed; trying again in %s s", self._settings.swap_poll)
            if self._stopping.wait(self._settings.swap_poll):
                return

    def _first(self, project: int) -> LoadedVersion:
        """The current version, or else the newest that loads, or else what the project started from."""
        if project not in self._live:
            self._live[project] = self._newest(project)
        return self._live[project]

    def _newest(self, project: int) -> LoadedVersion:
        versions = self._versions(project)
        try:
            current = versions.current()
        except VersionError as error:
            logger.error("project %d: %s", project, error)
            current = max(versions.accepted(), default=STARTER_NUMBER)
        for number in [current, *(number for number in reversed(versions.accepted()) if number < current)]:
            loaded = None if number == STARTER_NUMBER else self._checked(project, number)
            if loaded is not None:
                return loaded
        return self._beginning(project)

    def _beginning(self, project: int) -> LoadedVersion:
        """What stands before a project's own versions: the base's live version, and before the base's the starter."""
        if project != BASE_PROJECT:
            base = self._first(BASE_PROJECT)
            return replace(base, number=STARTER_NUMBER, watermark=BEGINNING)
        started = time.monotonic()
        starter = self._loader(self._settings, self._versions(BASE_PROJECT), STARTER_NUMBER)
        logger.info("starter loaded in %.1f s", time.monotonic() - started)
        return starter

    def _checked(self, project: int, number: int) -> LoadedVersion | None:
        try:
            if number == STARTER_NUMBER:
                return self._beginning(project)
            return self._loader(self._settings, self._versions(project), number)
        except Exception as error:  # whatever is wrong with it, the old one and other projects must go on
            logger.error("project %d: version %d refused (%s): %s", project, number, type(error).__name__, error)
            self._refused[project, number] = time.monotonic()
            return None

    def _is_refused(self, project: int, number: int) -> bool:
        since = self._refused.get((project, number))
        return since is not None and time.monotonic() - since < REFUSED_SECONDS

    def _versions(self, project: int) -> ProjectVersions:
        return ProjectVersions(self._settings.models_dir(), project)
