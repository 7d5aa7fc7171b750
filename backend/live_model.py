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

from toxicity.settings import Settings
from toxicity.versions import STARTER_NUMBER, LoadedVersion, ProjectVersions, VersionError, version_name

logger = logging.getLogger(__name__)

Loader = Callable[[Settings, ProjectVersions, int], LoadedVersion]

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
        self._live: dict[int | None, LoadedVersion] = {}
        self._starter: LoadedVersion | None = None
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
        """Return the live version of a project (None: the starter), loading it if this process never did.

        Keep the returned reference for the whole of a request: it never changes, whatever is published meanwhile.
        """
        live = self._live.get(project)
        if live is None:
            with self._loading:
                live = self._live.get(project) or self._first(project)
                self._live[project] = live
        return live

    def version_in_service(self, project: int | None) -> str:
        """Return the name of the version that answers, or will answer, for a project; at once, without loading."""
        live = self._live.get(project)
        if live is not None or project is None:
            return version_name(live.number if live else STARTER_NUMBER)
        try:
            return version_name(self._versions(project).current())
        except VersionError:
            return version_name(STARTER_NUMBER)

    def swap_where_behind(self) -> None:
        """Look once for newly published (or rolled back) versions, and swap to them."""
        for project in [project for project in list(self._live) if project is not None]:
            in_service = self._live[project].name
            if self._swap(project):
                # Keras models are reference cycles: without this the old one would stay until some later collection.
                gc.collect()
                logger.info("project %d: swapped %s for %s", project, in_service, self._live[project].name)

    def _swap(self, project: int) -> bool:
        try:
            wanted = self._versions(project).current()
        except (VersionError, OSError) as error:
            logger.error("project %d: stays on %s: %s", project, self._live[project].name, error)
            return False
        if wanted == self._live[project].number or self._is_refused(project, wanted):
            return False
        with self._loading:
            newer = self._checked(project, wanted)
        if newer is None:
            return False
        self._live[project] = newer
        return True

    def _follow(self) -> None:
        while True:
            try:
                with self._loading:
                    self._starter_version()
                self.swap_where_behind()
            except Exception:  # the thread must outlive any fault, or the process would serve old weights for ever
                logger.exception("looking for new versions failed; trying again in %s s", self._settings.swap_poll)
            if self._stopping.wait(self._settings.swap_poll):
                return

    def _first(self, project: int | None) -> LoadedVersion:
        """The current version, or else the newest that loads, or else the starter."""
        if project is None:
            return self._starter_version()
        versions = self._versions(project)
        try:
            current = versions.current()
        except VersionError as error:
            logger.error("project %d: %s", project, error)
            current = max(versions.numbers(), default=STARTER_NUMBER)
        for number in [current, *(number for number in reversed(versions.numbers()) if number < current)]:
            loaded = None if number == STARTER_NUMBER else self._checked(project, number)
            if loaded is not None:
                return loaded
        return self._starter_version()

    def _starter_version(self) -> LoadedVersion:
        if self._starter is None:
            started = time.monotonic()
            # The starter belongs to no project; its folder is never looked at.
            self._starter = self._loader(self._settings, self._versions(0), STARTER_NUMBER)
            logger.info("starter loaded in %.1f s", time.monotonic() - started)
        return self._starter

    def _checked(self, project: int, number: int) -> LoadedVersion | None:
        try:
            if number == STARTER_NUMBER:
                return self._starter_version()
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
