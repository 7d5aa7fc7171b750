"""Starts the web process: gunicorn, one process, many threads, the app made inside the worker process.

Not here: the application (app.py). TensorFlow must not be used before a fork, so nothing is preloaded.
"""

import sys

from gunicorn.app.wsgiapp import WSGIApplication

from toxicity.settings import settings_from_environment

SPARE_THREADS = 16  # beside those for predictions: /health has 1 s to answer, whatever the model does
REQUEST_SECONDS = 100  # Label Studio gives /predict as long


def main() -> None:
    """Serve until a signal ends it; a request in flight is answered first."""
    try:
        settings = settings_from_environment()
    except ValueError as error:
        sys.exit(f"backend: {error}")
    if narrowed := settings.narrowed_host():
        print(f"backend: {narrowed}", file=sys.stderr, flush=True)
    options = {
        "--bind": f"{settings.listening_host()}:{settings.port}",
        "--worker-class": "gthread",
        "--workers": "1",
        "--threads": str(settings.threads + SPARE_THREADS),
        "--timeout": str(REQUEST_SECONDS),
        "--graceful-timeout": str(REQUEST_SECONDS),
        "--log-level": settings.log_level.lower(),
    }
    arguments = [part for option in options.items() for part in option]
    sys.argv = ["gunicorn", "--no-control-socket", *arguments, "backend.app:create_app()"]
    WSGIApplication(prog="gunicorn").run()


if __name__ == "__main__":
    main()
